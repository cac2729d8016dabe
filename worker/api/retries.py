"""A client that asks again gets what was drawn for nobody.

A proxy that gives up after a minute, or a client's own deadline, closes the connection; SDKs then
send the same once more, under a new id and through any worker. So the drawing of a request whose
client is known to come back goes on for a while, and its answer waits for it (``undelivered``).
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from worker import log
from worker.api.client import ClientGone, while_connected
from worker.api.middleware.request_context import context_of
from worker.api.schemas.fields import digits_of
from worker.api.schemas.wire import Generation
from worker.errors import ZimageError
from worker.lifecycle import Lifecycle
from worker.storage.undelivered import Answer, Held

UNASKED_S = 20.0
"""So long a drawing goes on for nobody. SDKs come back within 8 s."""
_WAIT_S = 900.0
_LOOK_S = 0.2
_MAX_KEY_CHARS = 255

Draw = Callable[[], Coroutine[Any, Any, Answer]]


@dataclass(frozen=True)
class Retry:
    """``name`` stands for who asks and for what. ``again``: it may have been asked before."""

    name: str
    again: bool


def retry_of(request: Request, turn: str, asked: Generation, model: str = "") -> Retry | None:
    """What its headers say of other requests for the same; None: its client does not come back.
    ``model``: by its name, where there are several."""
    context = context_of(request)
    count = digits_of(context.header(b"x-stainless-retry-count"))
    key = context.header(b"idempotency-key")[:_MAX_KEY_CHARS]
    if asked.stream or (count is None and not key):
        return None
    owner = hashlib.blake2b(turn.encode(), digest_size=8).hexdigest()
    form = (asked.response_format, asked.output_format, asked.compression, asked.store)
    what = hashlib.blake2b(f"{turn}\n{key}\n{form}\n".encode(), digest_size=16)
    what.update(model.encode() + asked.normalised())
    return Retry(f"{owner}-{what.hexdigest()}", bool(key or count))


async def answer_of(request: Request, lifecycle: Lifecycle, retry: Retry, draw: Draw) -> Answer:
    """What was drawn for nobody, or else what ``draw`` draws. Raises ``ClientGone``."""
    context = context_of(request)
    suspect = context.suspect
    if suspect is None or not suspect.clean:  # what may kill workers is drawn for nobody
        return await while_connected(context, request.receive, draw())
    if retry.again:
        suspect.rest()
        found = await while_connected(context, request.receive, _found(lifecycle, retry.name))
        if found is not None:
            return found
        suspect.handling.resume()
    drawing = asyncio.create_task(draw())
    try:
        return await while_connected(context, request.receive, _of(drawing))
    except ClientGone:
        held = None if suspect.locked else _held(lifecycle, retry.name)
        if held is None:
            drawing.cancel()
        else:
            lifecycle.tasks.once("drawing for nobody", _go_on(drawing, held), lambda: None)
        raise
    except BaseException:
        drawing.cancel()
        raise


def _held(lifecycle: Lifecycle, name: str) -> Held | None:
    try:
        return lifecycle.components.undelivered.hold(name)
    except OSError as error:
        log.failure("nothing can be kept for a client that may ask again", error)
        return None


async def _of(drawing: asyncio.Task[Answer]) -> Answer:
    """It goes on where whoever waits here is cancelled."""
    return await asyncio.shield(drawing)


async def _found(lifecycle: Lifecycle, name: str) -> Answer | None:
    """The answer called ``name``, waited for while somebody draws it."""
    undelivered, end = lifecycle.components.undelivered, time.monotonic() + _WAIT_S
    while time.monotonic() < end:
        coming = undelivered.is_coming(name)  # first: it may be there before we look
        found = await asyncio.to_thread(undelivered.take, name)
        if found is not None or not coming:
            return found
        await asyncio.sleep(_LOOK_S)
        lifecycle.require_ready()
    return None


async def _go_on(drawing: asyncio.Task[Answer], held: Held) -> None:
    """Keep the answer for whoever asks for it. Draws no longer than it may be asked for."""
    try:
        while not drawing.done() and held.unasked_s() < UNASKED_S:
            await asyncio.wait([drawing], timeout=1.0)
        if drawing.done():
            with suppress(ZimageError):
                await asyncio.to_thread(held.put, drawing.result())
    finally:
        drawing.cancel()
        held.drop()
        await asyncio.wait([drawing])
