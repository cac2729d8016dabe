import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.types import Message

from worker.api import sse
from worker.api.middleware.request_context import RequestContext

pytestmark = pytest.mark.anyio


class Client:
    """The other end of an ASGI application; ``left`` closes the connection."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.left = asyncio.Event()
        self.ended = 0
        self.context = RequestContext("id", 0.0, "local")

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def on_end(self) -> None:
        self.ended += 1

    async def read(self, events: AsyncGenerator[bytes, None]) -> bytes:
        scope: dict[str, Any] = {"type": "http", "context": self.context}
        stream = sse.EventStream(events, self.on_end, "id")
        await asyncio.wait_for(stream(scope, self.receive, self.send), 30)
        return b"".join(message.get("body", b"") for message in self.sent)


async def two() -> AsyncGenerator[bytes, None]:
    yield b"1"
    yield b"2"


async def test_stream_is_closed_properly_at_its_end() -> None:
    client = Client()
    assert await client.read(two()) == b"12"
    assert client.sent[-1].get("more_body", False) is False
    assert client.ended == 1


async def test_client_that_leaves_before_the_first_event_ends_the_drawing() -> None:
    client = Client()
    client.left.set()

    async def waiting() -> AsyncGenerator[bytes, None]:
        await asyncio.Event().wait()
        yield b"1"

    await client.read(waiting())
    assert client.ended == 1
    assert client.context.notes["status"] == 499


async def test_client_that_leaves_in_silence_ends_the_drawing() -> None:
    client = Client()

    async def silent() -> AsyncGenerator[bytes, None]:
        yield b"1"
        client.left.set()
        await asyncio.Event().wait()

    assert await client.read(silent()) == b"1"
    assert client.ended == 1


async def test_silence_is_filled_with_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.01)

    async def slow() -> AsyncGenerator[bytes, None]:
        await asyncio.sleep(0.1)
        yield b"late"

    body = await Client().read(slow())
    assert body.startswith(b": still here\n\n")
    assert body.endswith(b"late")


async def test_bug_in_a_stream_is_an_error_event_without_a_trace() -> None:
    async def broken() -> AsyncGenerator[bytes, None]:
        yield b"1"
        raise KeyError("secret")

    body = await Client().read(broken())
    assert b"event: error\n" in body
    assert b"secret" not in body


def test_event_repeats_its_type() -> None:
    assert sse.event("a.b", n=1) == b'event: a.b\ndata: {"type":"a.b","n":1}\n\n'


async def test_stream_ends_in_order_when_its_worker_does() -> None:
    ending = asyncio.Event()

    async def endless() -> AsyncGenerator[bytes, None]:
        yield b"1"
        ending.set()
        await asyncio.Event().wait()

    client = Client()
    stream = sse.EventStream(endless(), client.on_end, "id", until=ending)
    scope = {"type": "http", "context": client.context}
    await asyncio.wait_for(stream(scope, client.receive, client.send), 30)
    assert b"".join(message.get("body", b"") for message in client.sent) == b"1"
    assert client.sent[-1].get("more_body", False) is False
    assert client.ended == 1
