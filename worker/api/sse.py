"""Server-sent events."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from worker import log
from worker.api import answers
from worker.api.client import ClientGone, while_connected
from worker.api.middleware.request_context import CLIENT_GONE
from worker.errors import ZimageError

KEEP_ALIVE_S = 15.0
_KEEP_ALIVE = b": still here\n\n"

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def frame(kind: str, *data: bytes) -> bytes:
    """One event; ``data`` is JSON in parts, which has no line breaks."""
    return b"".join((b"event: %b\ndata: " % kind.encode(), *data, b"\n\n"))


def event(kind: str, **fields: Any) -> bytes:
    """An event whose JSON repeats its type, as OpenAI's do."""
    return frame(kind, answers.dumps({"type": kind, **fields}))


class EventStream(Response):
    """Sends ``events`` until they end or the client leaves, then calls ``on_end``. ``until``: it
    breaks off once this is set.

    An error after the header was sent becomes an ``error`` event; the final event is then missing,
    so that no client takes the stream for complete.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        on_end: Callable[[], None],
        request_id: str,
        until: asyncio.Event | None = None,
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._on_end = on_end
        self._request_id = request_id
        self._until = until or asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(scope["context"], receive, self._send(send))
        except ClientGone:
            scope["context"].notes["status"] = CLIENT_GONE
        finally:
            # Not left to the events: those of a client that leaves at once have never begun.
            self._on_end()
            await self._events.aclose()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async for data in self._or_error():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _or_error(self) -> AsyncIterator[bytes]:
        try:
            async with aclosing(_with_keep_alive(self._events, self._until)) as events:
                async for data in events:
                    yield data
        except ZimageError as error:
            yield event("error", **answers.describe(error))
        except Exception as error:
            log.failure("stream failed", error, request_id=self._request_id)
            yield event("error", **answers.bug())


async def _with_keep_alive(
    events: AsyncGenerator[bytes, None], until: asyncio.Event
) -> AsyncGenerator[bytes, None]:
    """``events``, with a comment wherever they are silent: proxies on the way cut what is idle."""
    following: asyncio.Future[bytes] | None = None
    over = asyncio.ensure_future(until.wait())
    try:
        while not until.is_set():
            following = following or asyncio.ensure_future(anext(events))
            await asyncio.wait(
                (following, over), timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED
            )
            if not following.done():
                if not until.is_set():
                    yield _KEEP_ALIVE
                continue
            try:
                data = following.result()
            except StopAsyncIteration:
                return
            following = None
            yield data
    finally:
        over.cancel()
        if following is not None:
            following.cancel()
            await asyncio.wait((following,))
