"""The guard's metrics over a unix socket, for nginx to pass on to Prometheus."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST

_TIMEOUT_S = 5.0
_HEAD = f"HTTP/1.0 200 OK\r\nContent-Type: {CONTENT_TYPE_LATEST}\r\n\r\n".encode()


@asynccontextmanager
async def serving(path: Path, render: Callable[[], bytes]) -> AsyncIterator[None]:
    """Answer whatever is asked on ``path`` with what ``render`` gives. Only this user's processes
    can connect there, and nginx asks for nothing else."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(OSError, asyncio.IncompleteReadError):
            async with asyncio.timeout(_TIMEOUT_S):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(_HEAD + render())
                await writer.drain()

    await asyncio.to_thread(path.unlink, missing_ok=True)  # of a guard that was killed
    server = await asyncio.start_unix_server(answer, path)
    try:
        yield
    finally:
        server.close()
