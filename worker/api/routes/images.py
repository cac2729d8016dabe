"""POST /v1/images/generations: parse, have it drawn, answer."""

import asyncio
import hashlib
import re
import time
from collections.abc import Sequence
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from worker.api import answers, model_routing, retries, sse
from worker.api.caller import caller_of
from worker.api.client import ClientGone, read_json_body, while_connected
from worker.api.middleware.request_context import CLIENT_GONE, RequestContext, context_of
from worker.api.routes import files, image_events
from worker.api.schemas import wire
from worker.api.schemas.fields import json_object
from worker.api.schemas.openapi import Part, operation, ref
from worker.api.serving import lifecycle_of
from worker.components import Components, Model
from worker.generation.drawing import Drawing
from worker.generation.encoding import Finished
from worker.generation.request import Generation, Output
from worker.generation.tiling import Tiling
from worker.lifecycle import Lifecycle
from worker.storage.gallery import StoredImage
from worker.storage.undelivered import Answer

_MAX_IGNORED = 20
"""Most names of fields in ``X-Ignored-Fields``."""
_NO_NAME = re.compile(r"[^A-Za-z0-9_.-]")

REPLAY_OF = "X-Replay-Of"
"""Names the request for which the answer was drawn, where that was an earlier one."""
REPLIES_LOCATION = "/internal/replies/"
"""Where nginx finds the files of ``ReplyStore``."""


async def generate(request: Request) -> Response:
    """Draw the pictures of one request; a stream's header is sent only once it is admitted."""
    lifecycle = lifecycle_of(request)
    model, components = lifecycle.require_ready(), lifecycle.components
    try:
        values = json_object(await read_json_body(request, components.settings.max_body_bytes))
        model_routing.require_own(request, components, values)
        asked = wire.parse_values(values, components.settings, model.info)
        return await answer(request, lifecycle, asked)
    except ClientGone:
        return Response(status_code=CLIENT_GONE)  # for the log: nobody reads it


async def answer(request: Request, lifecycle: Lifecycle, asked: wire.Generation) -> Response:
    """What is drawn as ``asked``, by a worker that was ready. Raises ``ClientGone``."""
    model, components = lifecycle.model, lifecycle.components
    context = context_of(request)
    if asked.stream:
        return await while_connected(
            context, request.receive, _stream(request, model, components, asked)
        )
    draw = partial(_drawn, request, model, components, asked)
    about = components.models.label("")
    retry = retries.retry_of(request, caller_of(request).turn, asked, about)
    if retry is None:
        drawn = await while_connected(context, request.receive, draw())
    else:
        drawn = await retries.answer_of(request, lifecycle, retry, draw)
    return await _sent(components, context, drawn)


async def _stream(
    request: Request, model: Model, components: Components, asked: wire.Generation
) -> Response:
    drawing = _drawing(request, model, components, asked)
    await drawing.admit()
    events = image_events.events(drawing, asked)
    stream = sse.EventStream(events, drawing.end, drawing.generation.id)
    stream.headers.update(_ignored(asked))
    return stream


async def _drawn(
    request: Request, model: Model, components: Components, asked: wire.Generation
) -> Answer:
    drawing = _drawing(request, model, components, asked)
    try:
        drawn = await drawing.draw()
    finally:
        context_of(request).afterwards(drawing.publish)
    return _whole(request, components, asked, drawing, drawn)


def _drawing(
    request: Request, model: Model, components: Components, asked: wire.Generation
) -> Drawing:
    context, caller = context_of(request), caller_of(request)
    gallery = asked.store and components.settings.gallery.enabled
    assert context.suspect is not None, "the middleware comes first"
    specs = asked.specs(default_seed(context.id))
    generation = Generation(
        id=context.id,
        arrived_at=context.arrived_at,
        caller=caller,
        client=context.key,
        specs=specs,
        fingerprint=fingerprint_of(caller.turn, asked, components.models.label("")),
        output=Output(
            asked.output_format,
            asked.compression,
            inline=asked.response_format == "b64_json",
            gallery=gallery,
        ),
        priority=asked.priority,
        timeout_s=asked.timeout_s,
        stream=asked.stream,
        partial_images=asked.partial_images,
        resume=asked.resume,
        tiling=None if asked.tiles is None else Tiling(specs[0], asked.tiles),
    )
    context.notes |= {
        "images": len(generation.specs),
        "size": asked.parameters.size_text,
        "steps": asked.parameters.steps,
        "stream": asked.stream,
    }
    return Drawing(generation, context.suspect, model.drawing, context.notes, context.trace)


def _whole(
    request: Request,
    components: Components,
    asked: wire.Generation,
    drawing: Drawing,
    drawn: Sequence[tuple[Finished, StoredImage | None]],
) -> Answer:
    """All pictures in one JSON answer."""
    items = [_item(request, components, one, stored) for one, stored in drawn]
    content = {
        "created": int(time.time()),
        "background": "opaque",
        "output_format": asked.output_format,
        "size": asked.parameters.size_text,
        "usage": answers.NO_USAGE,
    }
    data = [part for item in items for part in (b",", *item)][1:]
    body = b"".join((answers.dumps(content)[:-1], b',"data":[', *data, b"]}"))
    headers = {
        "X-Queue-Ms": str(drawing.timings.queue_ms),
        "X-Inference-Ms": str(drawing.timings.inference_ms),
        "X-Batch-Size": str(drawing.timings.batch_size),
        **_ignored(asked),
    }
    return Answer(drawing.generation.id, headers, body)


def _item(
    request: Request, components: Components, one: Finished, stored: StoredImage | None
) -> tuple[bytes, ...]:
    fields = {"seed": one.spec.seed}
    if stored is None:
        return answers.with_b64(fields, one.picture.b64)
    return (answers.dumps({**fields, "url": files.link(request, components, stored.name)}),)


def _ignored(asked: wire.Generation) -> dict[str, str]:
    """The header that tells which fields nobody knows here. They may be called anything."""
    names = [_NO_NAME.sub("?", name[:60]) for name in asked.ignored[:_MAX_IGNORED]]
    return {"X-Ignored-Fields": ", ".join(names)} if names else {}


async def _sent(components: Components, context: RequestContext, answer: Answer) -> Response:
    """``answer`` over the socket, or as a file that nginx sends."""
    replies, name, body, headers = components.replies, None, answer.body, dict(answer.headers)
    if answer.id != context.id:
        headers[REPLAY_OF] = context.notes["replay_of"] = answer.id
    if replies.takes(body):
        name = await asyncio.to_thread(replies.save, context.id, body)
    if name is not None:
        headers["X-Accel-Redirect"], body = REPLIES_LOCATION + name, b""
    return answers.Prepared(body, headers)


def default_seed(request_id: str) -> int:
    """The seed of a request that names none: a replay, with the same id, draws the same."""
    return int(request_id[:8], 16)


def fingerprint_of(key: str, generation: wire.Generation, model: str = "") -> str:
    """Stands for who asks and for what: the same for a resubmission under another id. ``model``:
    by its name, where there are several."""
    text = b"%b\n%b%b" % (key.encode(), model.encode(), generation.normalised())
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
