"""The other end of a request: its body, and whether it is still there."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive

from worker.api.middleware.request_context import context_of
from worker.api.schemas.fields import digits_of
from worker.errors import DeadlinePassed, TooLarge

BODY_TIMEOUT_S = 30.0
_UNWATCHED_S = 0.1  # about as long as a step, which a running batch finishes anyway

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed its connection: nobody waits for an answer."""


async def read_json_body(request: Request, max_bytes: int) -> bytes:
    """The body of a JSON request, refused as soon as it is known to be too large."""
    context = context_of(request)
    media_type = context.header(b"content-type").partition(";")[0].strip().lower()
    if media_type != "application/json":
        # Being strict also keeps other web pages from posting here behind a visitor's back.
        shown = repr(media_type[:60]) if media_type else "nothing"
        message = f"Content-Type says {shown}: send JSON with Content-Type: application/json."
        raise HTTPException(415, message)
    _check_length(digits_of(context.header(b"content-length")) or 0, max_bytes)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read(request, max_bytes)
    except TimeoutError:
        raise DeadlinePassed(f"The body did not arrive within {BODY_TIMEOUT_S:g} s.") from None


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


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``; cancels it and raises ``ClientGone`` when the client leaves."""
    worker = asyncio.current_task()
    assert worker is not None
    left = False
    watcher: asyncio.Task[None] | None = None

    async def watch() -> None:
        nonlocal left
        await _gone(receive)
        left = True
        worker.cancel()

    def begin() -> None:
        nonlocal watcher
        watcher = asyncio.create_task(watch())

    # A task for whoever is answered at once would cost more than all else that is done here.
    timer = asyncio.get_running_loop().call_later(_UNWATCHED_S, begin)
    try:
        return await work
    except asyncio.CancelledError:
        # As asyncio.timeout tells its own cancellation from that of somebody else.
        if left and worker.uncancel() <= 0:
            raise ClientGone from None
        raise
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
