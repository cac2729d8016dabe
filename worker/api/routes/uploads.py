"""Pictures that are sent once and drawn from often: each is kept for a day, for its owner alone."""

from functools import partial
from typing import Any

import sqlalchemy as sa
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.api import multipart
from worker.api.address import root_of
from worker.api.answers import Json
from worker.api.caller import caller_of
from worker.api.client import ClientGone, media_type_of, read_body
from worker.api.middleware.request_context import CLIENT_GONE, RequestContext, context_of
from worker.api.routes.edits import reading
from worker.api.schemas.fields import bad
from worker.api.schemas.openapi import Part, operation, parameter, ref
from worker.api.serving import components_of, lifecycle_of
from worker.bounds import MAX_EDIT_BODY_BYTES
from worker.components import Components
from worker.errors import LimitReached, NotFound, StorageFailed
from worker.generation.imaging import MEDIA_TYPES, encode
from worker.lifecycle import Lifecycle
from worker.storage import images, uploads
from worker.storage.uploads import Upload
from worker.uploads.sources import Sent

PATH = "/v1/uploads"
_RAW = (*MEDIA_TYPES.values(), "application/octet-stream")
_FIELD = "file"


def describe(upload: Upload, root: str) -> dict[str, Any]:
    """The ``upload`` object of the API; its path begins with ``root``."""
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.bytes,
        "width": upload.width,
        "height": upload.height,
        "sha256": upload.sha256,
        "created": int(upload.created_at),
        "expires_at": int(upload.expires_at),
        "url": f"{root}{PATH}/{upload.id}/content",
    }


async def create(request: Request) -> Response:
    """Keep a picture for a day, without what its file says beside its pixels."""
    lifecycle_of(request).require_ready()
    components, owner = components_of(request), caller_of(request).owner
    context = context_of(request)
    id = f"upload_{context.id}"
    await _require_share(components, id, owner, 1)  # before any work
    try:
        async with reading(request, components):
            sent = Sent.of(await _file(request, components))
            pixels = await components.sources.pixels(sent.data, _FIELD)
            png = await components.image_threads.do(partial(encode, pixels, "png", None, ""))
    except ClientGone:
        return Response(status_code=CLIENT_GONE)
    height, width, channels = pixels.shape
    await _require_share(components, id, owner, len(png))
    upload = Upload(
        id=id,
        owner=owner,
        created_at=context.arrived_at,
        expires_at=context.arrived_at + uploads.KEEP_S,
        bytes=len(png),
        width=width,
        height=height,
        transparent=channels == 4,
        sha256=sent.sha256,
    )
    kept = await _kept(components, upload, png)
    _note(context, kept)
    return Json(describe(kept, root_of(request)), 201)


async def _require_share(components: Components, id: str, owner: str, more: int) -> None:
    """Raise ``LimitReached``, unless a replay's first attempt has kept it."""
    most_bytes = components.settings.max_upload_mib << 20

    def work(connection: sa.Connection) -> None:
        if uploads.find(connection, id) is None:
            uploads.require_share(connection, owner, most_bytes, more=more)

    await components.database.read(work)


async def _file(request: Request, components: Components) -> bytes:
    """The one that the body is or carries."""
    kind = media_type_of(request)
    if kind not in (multipart.MEDIA_TYPE, *_RAW):
        shown = repr(kind[:60]) if kind else "nothing"
        message = f"Content-Type says {shown}: send {multipart.MEDIA_TYPE}, or the file itself as "
        raise HTTPException(415, f"{message}{', '.join(_RAW[:-1])} or {_RAW[-1]}.")
    body = await read_body(request, MAX_EDIT_BODY_BYTES)
    if kind != multipart.MEDIA_TYPE:
        return body
    most_text = components.settings.max_body_bytes
    parts = await multipart.parts_of(body, request.headers["content-type"], most_text)
    for name in (*parts.texts, *parts.files):
        if name != _FIELD:
            bad(name[:60], "nothing is taken here but a file called file", "unknown_parameter")
    files = parts.files.get(_FIELD, [])
    if len(files) != 1:
        bad(_FIELD, f"{len(files)} of them: send one picture", "missing_required_parameter")
    return files[0]


async def _kept(components: Components, upload: Upload, png: bytes) -> Upload:
    """The row, once the file is safe. A replay finds what its first attempt has kept."""
    do, database = components.image_threads.do, components.database
    most_bytes = components.settings.max_upload_mib << 20
    try:
        await do(components.images.require_room)
        await do(lambda: components.images.save(upload.name, png))
    except StorageFailed as error:
        raise StorageFailed(
            "There is no room to keep the picture: send it with the drawing itself "
            "(POST /v1/images/edits), or tell the operators.",
            param=_FIELD,
        ) from error
    try:
        return await database.run(lambda c: uploads.add(c, upload, most_bytes))
    except LimitReached:  # others were quicker; what else fails may have been committed
        await do(lambda: components.images.delete([upload.name]))
        raise


async def list_uploads(request: Request) -> Response:
    """All of the caller, newest first."""
    owner = caller_of(request).owner
    found = await components_of(request).database.read(lambda c: uploads.of_owner(c, owner))
    data = [describe(upload, root_of(request)) for upload in found]
    return Json({"object": "list", "data": data, "has_more": False})


async def get_upload(request: Request) -> Response:
    return Json(describe(await _asked(request), root_of(request)))


async def get_content(request: Request) -> Response:
    """The picture, as it is drawn from: a PNG."""
    components, upload = components_of(request), await _asked(request)
    store = components.images
    if not await components.image_threads.do(lambda: store.has(upload.name)):
        remedy, shared = "send it again", components.shares_pictures
        raise images.lost(upload.id, upload.created_at, remedy, shared=shared)
    headers = {
        "X-Accel-Redirect": store.address(upload.name),
        "Content-Type": MEDIA_TYPES["png"],
        "Content-Disposition": "inline",
        "Cache-Control": f"private, max-age={int(uploads.KEEP_S)}, immutable",
    }
    return Response(headers=headers)


async def delete(request: Request) -> Response:
    """Delete it before its time."""
    components, upload = components_of(request), await _asked(request)
    await components.database.run(lambda c: uploads.delete(c, [upload.id]))
    await components.image_threads.do(lambda: components.images.delete([upload.name]))
    return Response(status_code=204)


async def _asked(request: Request) -> Upload:
    """The one that the path names, if it is the caller's: nobody else's, whatever may be seen."""
    id, owner = request.path_params["id"], caller_of(request).owner
    found = await components_of(request).database.read(lambda c: uploads.find(c, id))
    if found is None or found.owner != owner:
        raise NotFound(f"There is no upload {id!r} of yours: it may have expired. Send it again.")
    _note(context_of(request), found)
    return found


def _note(context: RequestContext, upload: Upload) -> None:
    context.notes |= {"upload": upload.id, "bytes": upload.bytes}


class _Id(StringConvertor):
    regex = uploads.ID


register_url_convertor("upload", _Id())

ROUTES = [
    Route(PATH, create, methods=["POST"]),
    Route(PATH, list_uploads, methods=["GET"]),
    Route(PATH + "/{id:upload}", get_upload, methods=["GET"]),
    Route(PATH + "/{id:upload}", delete, methods=["DELETE"]),
    Route(PATH + "/{id:upload}/content", get_content, methods=["GET"]),
]


def openapi(_: Lifecycle) -> Part:
    text, whole = {"type": "string"}, {"type": "integer"}
    binary = {**text, "format": "binary"}
    kinds: dict[str, Any] = {
        **dict.fromkeys(("id", "sha256", "url"), text),
        **dict.fromkeys(("bytes", "width", "height", "created", "expires_at"), whole),
        "object": {"const": "upload"},
    }
    upload = {"type": "object", "required": sorted(kinds), "properties": kinds}
    form = {
        "type": "object",
        "required": [_FIELD],
        "additionalProperties": False,
        "properties": {_FIELD: binary},
    }
    page = {
        "type": "object",
        "required": ["object", "data", "has_more"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": ref("Upload")},
            "has_more": {"type": "boolean"},
        },
    }
    one: dict[str, Any] = {
        "errors": (404,),
        "parameters": (parameter("path", "id", {**text, "pattern": f"^{uploads.ID}$"}),),
    }
    targets = [
        ("get", f"{PATH}/{{id}}"),
        ("get", f"{PATH}/{{id}}/content"),
        ("delete", f"{PATH}/{{id}}"),
    ]
    post = operation(
        "Keep a picture for a day, to draw from it.",
        {201: ref("Upload")},
        errors=(404, 422, 507),
        form=form,
        files=dict.fromkeys(_RAW, binary),
        leads_to={"/id": targets},
    )
    got = {200: {MEDIA_TYPES["png"]: binary}}
    paths = {
        "": {"post": post, "get": operation("Yours, newest first.", {200: page}, errors=(404,))},
        "/{id}": {
            "get": operation("What it is, and until when.", {200: ref("Upload")}, **one),
            "delete": operation("Delete it before its time.", {204: {}}, **one),
        },
        "/{id}/content": {"get": operation("The picture.", got, **one)},
    }
    return Part({f"{PATH}{path}": item for path, item in paths.items()}, {"Upload": upload})
