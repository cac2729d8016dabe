"""The other end of a request: its body, and whether it is still there."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive

from worker.api.middleware.request_context import RequestContext, context_of
from worker.api.schemas.fields import digits_of
from worker.errors import DeadlinePassed, TooLarge

BODY_TIMEOUT_S = 30.0
_UNWATCHED_S = 0.1  # about as long as a step, which a running batch finishes anyway

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed its connection: nobody waits for an answer."""


def media_type_of(request: Request) -> str:
    """What the request says that its body is, in lower case."""
    return context_of(request).header(b"content-type").partition(";")[0].strip().lower()


async def read_json_body(request: Request, max_bytes: int) -> bytes:
    """The body of a JSON request, refused as soon as it is known to be too large."""
    media_type = media_type_of(request)
    if media_type != "application/json":
        # Being strict also keeps other web pages from posting here behind a visitor's back.
        shown = repr(media_type[:60]) if media_type else "nothing"
        message = f"Content-Type says {shown}: send JSON with Content-Type: application/json."
        raise HTTPException(415, message)
    return await read_body(request, max_bytes)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body, refused as soon as it is known to be too large."""
    context = context_of(request)
    _check_length(digits_of(context.header(b"content-length")) or 0, max_bytes)
    late = _Interruption()
    timer = context.timers.after(BODY_TIMEOUT_S, late.begin)
    try:
        return await _read(request, max_bytes)
    except asyncio.CancelledError:
        if late.ends():
            message = f"The body did not arrive within {BODY_TIMEOUT_S:g} s."
            raise DeadlinePassed(message) from None
        raise
    finally:
        context.timers.cancel(timer)


async def _read(request: Request, max_bytes: int) -> bytes:
    body, more = bytearray(), True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        _check_length(len(body), max_bytes)
        more = message.get("more_body", False)
    return bytes(body)


def _check_length(length: int, max_bytes: int) -> None:
    if length > max_bytes:
        raise TooLarge(f"The body is over {max_bytes} bytes: send a smaller one.")


async def while_connected(
    context: RequestContext, receive: Receive, work: Coroutine[Any, Any, T]
) -> T:
    """The result of ``work``; cancels it and raises ``ClientGone`` when the client leaves."""
    left = _Interruption()
    watcher: asyncio.Task[None] | None = None

    async def watch() -> None:
        await _gone(receive)
        left.begin()

    def begin() -> None:
        nonlocal watcher
        watcher = asyncio.create_task(watch())

    # A task for whoever is answered at once would cost more than all else that is done here.
    timer = context.timers.after(_UNWATCHED_S, begin)
    try:
        return await work
    except asyncio.CancelledError:
        if left.ends():
            raise ClientGone from None
        raise
    finally:
        context.timers.cancel(timer)
        if watcher is not None:
            watcher.cancel()


class _Interruption:
    """Of the task that makes it. Tells its own cancellation from that of somebody else, as
    ``asyncio.timeout`` does."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._begun = False

    def begin(self) -> None:
        """Cancel the task."""
        self._begun = True
        self._task.cancel()

    def ends(self) -> bool:
        """Whether this was it, and nobody else's besides: the task goes on then."""
        return self._begun and self._task.uncancel() <= 0


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
