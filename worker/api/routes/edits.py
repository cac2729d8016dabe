"""POST /v1/images/edits, variations and upscale: drawings that go on from a picture."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from worker.api import model_routing, multipart
from worker.api.caller import caller_of
from worker.api.client import ClientGone, media_type_of, read_body
from worker.api.middleware.request_context import CLIENT_GONE, context_of
from worker.api.routes import images
from worker.api.schemas import edit_wire
from worker.api.schemas.edit_wire import Edit, Kind, Upscale
from worker.api.schemas.fields import bad, json_object
from worker.api.schemas.openapi import Part, operation, ref
from worker.api.serving import lifecycle_of
from worker.bounds import EDITS, MAX_EDIT_BODY_BYTES, UPSCALE, VARIATIONS
from worker.components import Components, Model
from worker.generation.tiling import Tiles
from worker.lifecycle import Lifecycle
from worker.uploads.sources import Sent

T = TypeVar("T")

PATHS: Mapping[Kind, str] = {"edit": EDITS, "variation": VARIATIONS, "upscale": UPSCALE}


async def edit(request: Request) -> Response:
    """Draw from a picture, or a part of one anew."""
    return await _answer(request, "edit")


async def vary(request: Request) -> Response:
    """Draw pictures like one."""
    return await _answer(request, "variation")


async def upscale(request: Request) -> Response:
    """Draw a picture anew, twice as large, with finer detail."""
    return await _answer(request, "upscale")


ANSWERS = {EDITS: edit, VARIATIONS: vary, UPSCALE: upscale}


async def _answer(request: Request, kind: Kind) -> Response:
    lifecycle = lifecycle_of(request)
    model, components = lifecycle.require_ready(), lifecycle.components
    try:
        async with reading(request, components):
            asked = await _asked(request, model, components, kind)
        context_of(request).notes["strength"] = asked.parameters.strength
        return await images.answer(request, lifecycle, asked)
    except ClientGone:
        return Response(status_code=CLIENT_GONE)  # for the log: nobody reads it


@asynccontextmanager
async def reading(request: Request, components: Components) -> AsyncIterator[None]:
    """A turn to read a request with pictures: see ``Sources.reading``."""
    suspect = context_of(request).suspect
    assert suspect is not None, "the middleware comes first"
    suspect.handling.pause()  # whoever waits is to blame for nothing
    async with components.sources.reading():
        suspect.handling.resume()
        yield


async def _asked(request: Request, model: Model, components: Components, kind: Kind) -> Edit:
    settings, info = components.settings, model.info
    values, files = await _read(request, model, components, kind)
    model_routing.require_own(request, components, values)
    asked = edit_wire.parse(values, settings, info, kind)
    if not info.edits:
        bad("image", "this model draws from text alone: use /v1/images/generations")
    given = await _given(request, components, asked, files)
    if asked.prompts == ("",) and given.prompt:
        asked = asked.model_copy(update={"prompts": (given.prompt,)})
    source = await components.sources.prepare(
        given.image, given.mask, asked.placing(settings, info), masked=kind == "edit"
    )
    assert source.pixels is not None, "they are dropped later"
    height, width, _ = source.pixels.shape
    size = width, height
    if not isinstance(asked, Upscale):
        return asked.goes_on_from(source, size)
    source.placement = f"upscale {edit_wire.SCALE}"
    if source.drawn_from:
        source.drawn_from = {**source.drawn_from, "fit": "upscale"}
    most = edit_wire.tile_of(settings, info)
    cut = partial(Tiles.of, source, most, info.side_multiple)
    return asked.in_tiles(source, size, await asyncio.to_thread(cut))


class _Given(NamedTuple):
    """``prompt``: of the image, where it is of the gallery."""

    image: Sent
    mask: Sent | None
    prompt: str


async def _given(
    request: Request, components: Components, asked: Edit, files: dict[str, bytes]
) -> _Given:
    """Files of the request, or of whoever asks by their ids."""
    ids = {name: id for name, id in (("image", asked.image), ("mask", asked.mask)) if id}
    for name in ids.keys() & files.keys():
        bad(name, "both a file and the id of a picture: leave one out")
    sent, prompt = {name: Sent.of(data) for name, data in files.items()}, ""
    if "image" not in sent.keys() | ids.keys():
        bad("image", *_MISSING)
    for name, id in ids.items():
        named = await components.named.find(caller_of(request).owner, id, name)
        sent[name] = await components.named.read(named)
        prompt = named.prompt if name == "image" else prompt
    return _Given(sent["image"], sent.get("mask"), prompt)


_MISSING = "missing: send the picture to go on from", "missing_required_parameter"


async def _read(
    request: Request, model: Model, components: Components, kind: Kind
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What the body says, and its files."""
    settings, media_type = components.settings, media_type_of(request)
    if media_type == "application/json":
        return json_object(await read_body(request, settings.max_body_bytes)), {}
    if media_type != multipart.MEDIA_TYPE:
        shown = repr(media_type[:60]) if media_type else "nothing"
        message = f"Content-Type says {shown}: send {multipart.MEDIA_TYPE} or application/json."
        raise HTTPException(415, message)
    body = await read_body(request, MAX_EDIT_BODY_BYTES)
    content_type = request.headers["content-type"]
    parts = await multipart.parts_of(body, content_type, settings.max_body_bytes)
    texts = {_single(name): _one(name, said) for name, said in parts.texts.items()}
    files = _files(parts.files, edit_wire.files_of(kind))
    return edit_wire.typed(texts, settings, model.info), files


def _files(sent: dict[str, list[bytes]], known: tuple[str, ...]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for name, several in sent.items():
        own = _single(name)
        if own not in known:
            bad(own[:60], f"no file is taken here but {' and '.join(known)}", "unknown_parameter")
        if own in files:
            bad(own, "sent twice: send one")
        files[own] = _one(name, several)
    return files


def _single(name: str) -> str:
    """OpenAI's SDK says ``image[]`` where it has a list of them."""
    return name.removesuffix("[]")


def _one(name: str, several: list[T]) -> T:
    if len(several) > 1:
        bad(_single(name)[:60], f"{len(several)} of them: one is taken; send one")
    return several[0]


def openapi(lifecycle: Lifecycle) -> Part:
    about = lifecycle.settings, lifecycle.model.info
    paths, schemas = {}, {}
    for kind, path in PATHS.items():
        name = kind.capitalize()
        schemas[name] = edit_wire.schema(*about, kind, files=False)
        schemas[f"{name}Form"] = edit_wire.schema(*about, kind, files=True)
        post = operation(
            f"{ANSWERS[path].__doc__} With `stream` as server-sent events.",
            {200: {"application/json": ref("Drawn"), "text/event-stream": ref("Event")}},
            errors=(404, 422, 507),
            body=ref(name),
            form=ref(f"{name}Form"),
        )
        paths[path] = {"post": post}
    return Part(paths, schemas)
