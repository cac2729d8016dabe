"""The gallery: stored pictures of whoever asks, found again, marked and deleted.

Somebody else's picture answers as one that does not exist.
"""

import re
from typing import Any
from urllib.parse import quote

from starlette.convertors import StringConvertor, register_url_convertor
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.api import oversight, searches
from worker.api.address import root_of
from worker.api.answers import Json
from worker.api.caller import Caller, caller_of
from worker.api.client import read_json_body
from worker.api.schemas import shown
from worker.api.schemas.fields import Fields, bad, bounded, json_object, refuse_unknown
from worker.api.schemas.openapi import Part, operation, parameter, ref
from worker.api.serving import components_of
from worker.components import Components
from worker.errors import NotFound, ZimageError
from worker.generation.imaging import MEDIA_TYPES
from worker.lifecycle import Lifecycle
from worker.storage import gallery, images, thumbnails
from worker.storage.gallery import StoredImage, Wanted

MAX_LIMIT = 200
MAX_QUERY_CHARS = 200
MAX_QUERY_WORDS = 16

_QUERIES = ("after", "favourite", "job", "limit", "q")
_DRAWN_FROM = ("image", "mask", "fit", "position")
_FLAGS = {"true": True, "1": True, "false": False, "0": False}
# A picture never changes under its id.
_CACHE = {"Cache-Control": "private, max-age=2592000, immutable"}


def describe(picture: StoredImage, root: str) -> dict[str, Any]:
    """The ``image`` object of the API; its paths begin with ``root``."""
    url = f"{root}/v1/images/{picture.id}"
    job = {"id": picture.job_id, "number": picture.job_number}
    return {
        "id": picture.id,
        "object": "image",
        "created_at": round(picture.created_at, 3),
        "prompt": picture.prompt,
        "seed": picture.seed,
        **shown.of_picture(picture.parameters),
        "image_sha256": picture.image_sha256,
        "mask_sha256": picture.mask_sha256,
        "drawn_from": _drawn_from(picture),
        "model": picture.model,
        "format": picture.format,
        "bytes": picture.bytes,
        "favourite": picture.favourite,
        "job": None if picture.job_id is None else job,
        "url": url,
        "thumbnail_url": f"{url}/thumbnail",
    }


def _drawn_from(picture: StoredImage) -> dict[str, str | None] | None:
    told = picture.drawn_from
    return None if told is None else {name: told.get(name) for name in _DRAWN_FROM}


async def list_images(request: Request) -> Response:
    """One page of pictures, newest first."""
    components, caller = components_of(request), caller_of(request)
    wanted = _wanted(request.query_params, caller)
    if wanted.after is not None:
        await _owned(components, caller, wanted.after, "after")
    found = await _page(components, caller, wanted)
    shown, more = found[: wanted.limit - 1], len(found) == wanted.limit
    _note(components, request, *shown)
    data = [describe(picture, root_of(request)) for picture in shown]
    return Json({"object": "list", "data": data, "has_more": more})


async def _page(components: Components, caller: Caller, wanted: Wanted) -> list[StoredImage]:
    if not wanted.words and wanted.favourite is None:
        return await components.database.read(lambda c: gallery.page(c, wanted))
    remedy = "search for more of the prompt, or for rarer words"
    return await searches.search(
        components, caller, lambda c: gallery.page(c, wanted), param="q", remedy=remedy
    )


async def get_details(request: Request) -> Response:
    return Json(describe(await _asked(request), root_of(request)))


async def get_image(request: Request) -> Response:
    """The picture's file; with ``?download=1`` for the browser to save."""
    components, picture = components_of(request), await _asked(request)
    address = await address_of(components, picture.name)
    if address is None:
        raise lost(components, picture)
    kind = "attachment" if request.query_params.get("download") == "1" else "inline"
    extension = {"jpeg": "jpg"}.get(picture.format, picture.format)
    words = re.sub(r"[\W_]+", "-", picture.prompt)[:48].strip("-")
    name = quote(f"{words}-{picture.seed}.{extension}")
    headers = {
        "X-Accel-Redirect": address,
        "Content-Type": MEDIA_TYPES[picture.format],
        "Content-Disposition": f"{kind}; filename*=UTF-8''{name}",
    }
    return Response(headers={**headers, **_CACHE})


async def get_thumbnail(request: Request) -> Response:
    """A small WebP of the picture."""
    components, picture = components_of(request), await _asked(request)
    try:
        address = await components.thumbnails.of(picture.name)
    except OSError:
        raise lost(components, picture) from None
    headers = {"X-Accel-Redirect": address, "Content-Type": thumbnails.MEDIA_TYPE}
    return Response(headers={**headers, **_CACHE})


async def patch_image(request: Request) -> Response:
    """Change whether the picture is a favourite."""
    components, picture = components_of(request), await _asked(request)
    fields = Fields(json_object(await read_json_body(request, components.settings.max_body_bytes)))
    refuse_unknown(fields.values, ("favourite",))
    if fields.values.get("favourite") is None:
        bad("favourite", "is missing: send true or false", "missing_field")
    favourite = fields.flag("favourite")
    await components.database.run(lambda c: gallery.mark(c, picture.id, favourite))
    marked = await _owned(components, caller_of(request), picture.id)
    return Json(describe(marked, root_of(request)))


async def delete_image(request: Request) -> Response:
    """Delete the picture and its file."""
    components, picture = components_of(request), await _asked(request)
    await components.database.run(lambda c: gallery.delete(c, [picture.id]))
    await components.image_threads.do(lambda: components.images.delete([picture.name]))
    return Response(status_code=204)


async def address_of(components: Components, name: str) -> str | None:
    """Where nginx finds picture ``name``; None: it is gone."""
    images = components.images
    return await components.image_threads.do(
        lambda: images.address(name) if images.holds(name) else None
    )


class _Id(StringConvertor):
    regex = images.ID


register_url_convertor("image", _Id())

ROUTES = [
    Route("/v1/images", list_images, methods=["GET"]),
    Route("/v1/images/{id:image}", get_image, methods=["GET"]),
    Route("/v1/images/{id:image}", patch_image, methods=["PATCH"]),
    Route("/v1/images/{id:image}", delete_image, methods=["DELETE"]),
    Route("/v1/images/{id:image}/details", get_details, methods=["GET"]),
    Route("/v1/images/{id:image}/thumbnail", get_thumbnail, methods=["GET"]),
]


async def _asked(request: Request) -> StoredImage:
    """The picture that the request's path names, if it is the caller's."""
    components = components_of(request)
    picture = await _owned(components, caller_of(request), request.path_params["id"])
    _note(components, request, picture)
    return picture


def _note(components: Components, request: Request, *pictures: StoredImage) -> None:
    own = caller_of(request).owner
    others = {picture.id: picture.owner for picture in pictures if picture.owner != own}
    oversight.note(components, request, others.values(), images=list(others))


async def _owned(
    components: Components, caller: Caller, id: str, param: str | None = None
) -> StoredImage:
    picture = None
    if re.fullmatch(images.ID, id):
        picture = await components.database.read(lambda c: gallery.find(c, id))
    if picture is None or not caller.may_see(picture.owner):
        raise NotFound(f"There is no picture {id[:70]!r}: it may have been deleted.", param=param)
    return picture


def lost(components: Components, picture: StoredImage) -> ZimageError:
    """What to say of a picture in the gallery whose file is not to be found."""
    remedy = "draw it again with its seed"
    return images.lost(picture.id, picture.created_at, remedy, shared=components.shares_pictures)


def _wanted(query: QueryParams, caller: Caller) -> Wanted:
    fields = Fields(dict(query))
    refuse_unknown(fields.values, _QUERIES)
    favourite, limit = query.get("favourite"), query.get("limit", "50")
    if favourite is not None and favourite not in _FLAGS:
        bad("favourite", f"{favourite[:40]!r} is neither true nor false")
    if not re.fullmatch(r"[0-9]{1,4}", limit) or not 1 <= int(limit) <= MAX_LIMIT:
        bad("limit", f"{limit[:40]!r} is no number from 1 to {MAX_LIMIT}")
    return Wanted(
        owner=None if caller.role == "ops" else caller.owner,
        words=_words(query.get("q", "")),
        favourite=None if favourite is None else _FLAGS[favourite],
        job_id=query.get("job"),
        after=query.get("after"),
        limit=int(limit) + 1,  # one more tells whether there is more
    )


def _words(query: str) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(bounded("q", query, MAX_QUERY_CHARS).split()))
    if len(words) > MAX_QUERY_WORDS:
        bad("q", f"{len(words)} words; at most {MAX_QUERY_WORDS} are searched for: leave some out")
    return words


def openapi(_: Lifecycle) -> Part:
    text, flag = {"type": "string"}, {"type": "boolean"}
    whole, number = {"type": "integer"}, {"type": "number"}
    job = {
        "type": ["object", "null"],
        "required": ["id", "number"],
        "properties": {"id": text, "number": whole},
    }
    drawn_from = {
        "type": ["object", "null"],
        "required": list(_DRAWN_FROM),
        "properties": {name: {"type": ["string", "null"]} for name in _DRAWN_FROM},
    }
    kinds: dict[str, Any] = {
        **dict.fromkeys(("id", "prompt", "model", "url", "thumbnail_url"), text),
        **dict.fromkeys(("seed", "bytes"), whole),
        **shown.PICTURES,
        **{f"{name}_sha256": {"type": ["string", "null"]} for name in ("image", "mask")},
        "created_at": number,
        "object": {"const": "image"},
        "format": {"enum": list(MEDIA_TYPES)},
        "favourite": flag,
        "job": job,
        "drawn_from": drawn_from,
    }
    image = {"type": "object", "required": sorted(kinds), "properties": kinds}
    page = {
        "type": "object",
        "required": ["object", "data", "has_more"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": ref("Image")},
            "has_more": flag,
        },
    }
    queries = (
        parameter("query", "q", {**text, "maxLength": MAX_QUERY_CHARS}, "Words of the prompt."),
        parameter("query", "favourite", {"enum": list(_FLAGS)}),
        parameter("query", "job", text),
        parameter("query", "limit", {**whole, "minimum": 1, "maximum": MAX_LIMIT}),
        parameter("query", "after", text, "The id of the last picture that is known."),
    )
    mark = {
        "type": "object",
        "required": ["favourite"],
        "additionalProperties": False,
        "properties": {"favourite": flag},
    }
    one = (parameter("path", "id", {**text, "pattern": f"^{images.ID}$"}),)
    file = {kind: {**text, "format": "binary"} for kind in MEDIA_TYPES.values()}
    save = (*one, parameter("query", "download", text, "1: for the browser to save."))
    small = {thumbnails.MEDIA_TYPE: {**text, "format": "binary"}}
    missing: dict[str, Any] = {"errors": (404,), "parameters": one}
    below = ("", "/details", "/thumbnail")
    one_picture = [
        *(("get", f"/v1/images/{{id}}{path}") for path in below),
        *((method, "/v1/images/{id}") for method in ("patch", "delete")),
    ]
    paths = {
        "": {
            "get": operation(
                "Your pictures, newest first.",
                {200: page},
                errors=(404,),
                parameters=queries,
                leads_to={"/data/0/id": one_picture},
            )
        },
        "/{id}": {
            "get": operation("The file.", {200: file}, errors=(404,), parameters=save),
            "patch": operation(
                "Change whether it is a favourite.", {200: ref("Image")}, body=mark, **missing
            ),
            "delete": operation("Delete picture and file.", {204: {}}, **missing),
        },
        "/{id}/details": {
            "get": operation("How it was drawn.", {200: ref("Image")}, **missing),
        },
        "/{id}/thumbnail": {"get": operation("A small WebP.", {200: small}, **missing)},
    }
    return Part({f"/v1/images{path}": item for path, item in paths.items()}, {"Image": image})
