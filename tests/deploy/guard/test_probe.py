import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from deploy.guard.gate import make_closed_socket
from deploy.guard.probe import Answer, NoAnswer, NobodyListens, ask

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def answers(reply: bytes | None, socket: Path, timeout_s: float = 5.0) -> Answer:
    """What ``ask`` makes of a server that sends ``reply`` and closes; None: that says nothing."""
    done = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if reply is None:
            await done.wait()
        for byte in reply or b"":
            writer.write(bytes([byte]))
            await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(handle, str(socket)):
        try:
            return await ask(socket, "/readyz", timeout_s=timeout_s)
        finally:
            done.set()


def test_status_and_body_are_read_however_they_arrive(tmp_path: Path) -> None:
    reply = b'HTTP/1.1 503 Busy\r\nX: y\r\n\r\n{"reason": "draining"}'
    answer = asyncio.run(answers(reply, tmp_path / "s"))
    assert (answer.status, answer.reason) == (503, "draining")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"{"])
def test_other_bodies_are_empty(tmp_path: Path, body: bytes) -> None:
    answer = asyncio.run(answers(b"HTTP/1.1 200 OK\r\n\r\n" + body, tmp_path / "s"))
    assert answer == Answer(200, {})


def test_silence_ends_with_the_timeout(tmp_path: Path) -> None:
    with pytest.raises(NoAnswer):
        asyncio.run(answers(None, tmp_path / "s", timeout_s=0.05))


def test_nonsense_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(NoAnswer):
        asyncio.run(answers(b"SSH-2.0-x y\r\n\r\n", tmp_path / "s"))


def test_connection_that_breaks_off_is_nobody(tmp_path: Path) -> None:
    with pytest.raises(NobodyListens):
        asyncio.run(answers(b"HTTP/1.1 20", tmp_path / "s"))


def test_missing_and_refusing_sockets_are_nobody(tmp_path: Path) -> None:
    make_closed_socket(tmp_path / "closed")
    for name in ("missing", "closed"):
        with pytest.raises(NobodyListens):
            asyncio.run(ask(tmp_path / name, "/readyz", timeout_s=5.0))
