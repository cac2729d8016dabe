"""POST /v1/images/generations: parse, have it drawn, answer."""

import asyncio
import hashlib
import re
import time
from collections.abc import Mapping, Sequence

from starlette.requests import Request
from starlette.responses import Response

from worker.api import answers, sse
from worker.api.caller import caller_of
from worker.api.client import ClientGone, read_json_body, while_connected
from worker.api.middleware.request_context import CLIENT_GONE, context_of
from worker.api.routes import files, image_events
from worker.api.schemas import wire
from worker.api.schemas.openapi import Part, operation, ref
from worker.api.serving import lifecycle_of
from worker.components import Components, Model
from worker.generation.drawing import Drawing
from worker.generation.encoding import Finished
from worker.generation.request import Generation, Output
from worker.lifecycle import Lifecycle
from worker.storage.gallery import StoredImage

_MAX_IGNORED = 20
"""Most names of fields in ``X-Ignored-Fields``."""
_NO_NAME = re.compile(r"[^A-Za-z0-9_.-]")

REPLIES_LOCATION = "/internal/replies/"
"""Where nginx finds the files of ``ReplyStore``."""


async def generate(request: Request) -> Response:
    """Draw the pictures of one request; a stream's header is sent only once it is admitted."""
    lifecycle = lifecycle_of(request)
    model, components = lifecycle.require_ready(), lifecycle.components
    try:
        body = await read_json_body(request, components.settings.max_body_bytes)
        asked = wire.parse(body, components.settings, model.info)
        answer = _answer(request, model, components, asked)
        return await while_connected(request.receive, answer)
    except ClientGone:
        return Response(status_code=CLIENT_GONE)  # for the log: nobody reads it


async def _answer(
    request: Request, model: Model, components: Components, asked: wire.Generation
) -> Response:
    gallery = asked.store and components.settings.gallery.enabled
    drawing = _drawing(request, model, asked, gallery=gallery)
    if asked.stream:
        await drawing.admit()
        events = image_events.events(drawing, asked)
        stream = sse.EventStream(events, drawing.end, drawing.generation.id)
        stream.headers.update(_ignored(asked))
        return stream
    drawn = await drawing.draw()
    return await _whole(request, components, asked, drawing, drawn)


def _drawing(request: Request, model: Model, asked: wire.Generation, *, gallery: bool) -> Drawing:
    context, caller = context_of(request), caller_of(request)
    assert context.suspect is not None, "the middleware comes first"
    generation = Generation(
        id=context.id,
        arrived_at=context.arrived_at,
        caller=caller,
        client=context.key,
        specs=asked.specs(default_seed(context.id)),
        fingerprint=fingerprint_of(caller.turn, asked),
        output=Output(
            asked.output_format,
            asked.quality,
            inline=asked.response_format == "b64_json",
            gallery=gallery,
        ),
        priority=asked.priority,
        timeout_s=asked.timeout_s,
        stream=asked.stream,
        partial_images=asked.partial_images,
        resume=asked.resume,
    )
    context.notes |= {
        "images": len(generation.specs),
        "size": asked.parameters.size_text,
        "steps": asked.parameters.steps,
        "stream": asked.stream,
    }
    return Drawing(
        generation,
        context.suspect,
        model.drawing,
        context.notes,
        context.trace,
        context.afterwards.append,
    )


async def _whole(
    request: Request,
    components: Components,
    asked: wire.Generation,
    drawing: Drawing,
    drawn: Sequence[tuple[Finished, StoredImage | None]],
) -> Response:
    """All pictures in one JSON answer."""
    items = [_item(request, components, one, stored) for one, stored in drawn]
    content = {
        "created": int(time.time()),
        "background": "opaque",
        "output_format": asked.output_format,
        "size": asked.parameters.size_text,
        "usage": answers.NO_USAGE,
    }
    body = b'%b,"data":[%b]}' % (answers.dumps(content)[:-1], b",".join(items))
    headers = {
        "X-Queue-Ms": str(drawing.timings.queue_ms),
        "X-Inference-Ms": str(drawing.timings.inference_ms),
        "X-Batch-Size": str(drawing.timings.batch_size),
        **_ignored(asked),
    }
    return await _sent(components, drawing.generation.id, body, headers)


def _item(
    request: Request, components: Components, one: Finished, stored: StoredImage | None
) -> bytes:
    fields = {"seed": one.spec.seed}
    if stored is None:
        return answers.with_b64(fields, one.picture.b64)
    return answers.dumps({**fields, "url": files.link(request, components, stored.name)})


def _ignored(asked: wire.Generation) -> dict[str, str]:
    """The header that tells which fields nobody knows here. They may be called anything."""
    names = [_NO_NAME.sub("?", name[:60]) for name in asked.ignored[:_MAX_IGNORED]]
    return {"X-Ignored-Fields": ", ".join(names)} if names else {}


async def _sent(
    components: Components, request_id: str, body: bytes, headers: Mapping[str, str]
) -> Response:
    """``body`` over the socket, or as a file that nginx sends."""
    replies, name = components.replies, None
    if replies.takes(body):
        name = await asyncio.to_thread(replies.save, request_id, body)
    if name is not None:
        headers, body = {**headers, "X-Accel-Redirect": REPLIES_LOCATION + name}, b""
    return Response(body, media_type="application/json", headers=headers)


def default_seed(request_id: str) -> int:
    """The seed of a request that names none: a replay, with the same id, draws the same."""
    return int(request_id[:8], 16)


def fingerprint_of(key: str, generation: wire.Generation) -> str:
    """Stands for who asks and for what: the same for a resubmission under another id."""
    text = b"%b\n%b" % (key.encode(), generation.normalised())
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def openapi(lifecycle: Lifecycle) -> Part:
    item = {
        "type": "object",
        "required": ["seed"],
        "properties": {
            "seed": {"type": "integer"},
            "b64_json": {"type": "string"},
            "url": {"type": "string", "description": "Works for a while, without a key."},
        },
    }
    usage = {
        "type": "object",
        "description": "Zero: nothing is counted in tokens.",
        "required": list(answers.NO_USAGE),
        "properties": {
            name: {"type": "object" if name.endswith("details") else "integer"}
            for name in answers.NO_USAGE
        },
    }
    drawn = {
        "type": "object",
        "required": ["created", "data", "output_format", "size", "usage"],
        "properties": {
            "created": {"type": "integer"},
            "background": {"type": "string"},
            "output_format": {"enum": list(wire.FORMATS)},
            "size": {"type": "string"},
            "usage": usage,
            "data": {"type": "array", "items": item},
        },
    }
    post = operation(
        "Draw pictures; with `stream` as server-sent events.",
        {200: {"application/json": ref("Drawn"), "text/event-stream": ref("Event")}},
        errors=(404, 422, 507),
        body=ref("Generation"),
    )
    schemas = {"Drawn": drawn, "Generation": wire.schema(lifecycle.settings, lifecycle.model.info)}
    return Part({"/v1/images/generations": {"post": post}}, schemas)
