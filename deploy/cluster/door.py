"""Where machines come in that were invited: open only while somebody waits for one.

One line of JSON each way over TLS. Not through uvicorn: here every connection has one deadline,
its handshake included, which an HTTP server would give to whoever sends headers slowly.
"""

import asyncio
import errno
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.cell import CellError
from deploy.cluster.welcome import Asked, Refused, Welcome
from deploy.rendering.certificate import Certificate

MAX_BYTES = 64 << 10
_ANSWER_S = 15.0
_AT_ONCE = 32
_PORTS = 10
_PAUSE_S = 0.2

Look = Callable[[Asked], dict[str, Any]]
Admit = Callable[[Asked], Welcome]
"""Both: ``Refused``, or ``CellError``: it cannot be done now."""


class Door:
    """``admitted`` holds who came in. ``tell`` gets a line for each that was refused."""

    def __init__(self, look: Look, admit: Admit, tell: Callable[[str], None]) -> None:
        self._look = look
        self._admit = admit
        self._tell = tell
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._turn = asyncio.Lock()
        self.admitted: asyncio.Queue[Welcome] = asyncio.Queue()

    @asynccontextmanager
    async def open(self, address: str, port: int, certificate: Certificate) -> AsyncIterator[int]:
        """Listen on ``address`` at ``port`` or one of the nine above; the port. ``CellError``:
        none is free."""
        server = await self._listen(address, port, _context(certificate))
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()

    async def _listen(self, address: str, first: int, context: ssl.SSLContext) -> asyncio.Server:
        why, own = "", address
        for port in range(first, min(first + _PORTS, 65536)):
            try:
                return await self._bind(own, port, context)
            except OSError as error:
                why = error.strerror or str(error)
        raise CellError(
            f"nobody can knock: ports {first} to {port} of {address} cannot be listened on "
            f"({why}); name another with --door HOST:PORT"
        )

    async def _bind(self, address: str, port: int, context: ssl.SSLContext) -> asyncio.Server:
        options: dict[str, Any] = {"ssl": context, "limit": MAX_BYTES}
        options |= {"ssl_handshake_timeout": _ANSWER_S, "ssl_shutdown_timeout": 1.0}
        try:
            return await asyncio.start_server(self._meet, address, port, **options)
        except OSError as error:
            if error.errno not in {errno.EADDRNOTAVAIL, None}:
                raise
        # Others reach this machine by an address that is not its own.
        return await asyncio.start_server(self._meet, None, port, **options)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not self._room.locked():  # whoever is one too many comes again
                async with self._room, asyncio.timeout(_ANSWER_S):
                    line = await reader.readuntil(b"\n")
                    welcome, answer = await self._answer(line, writer)
                    writer.write(json.dumps(answer).encode() + b"\n")
                    await writer.drain()
                    await reader.readuntil(b"\n")  # it has arrived; else the same may come again
                    if welcome is not None:
                        self.admitted.put_nowait(welcome)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # who does not speak as agreed gets no answer
        finally:
            writer.close()

    async def _answer(
        self, line: bytes, writer: asyncio.StreamWriter
    ) -> tuple[Welcome | None, dict[str, Any]]:
        """One after another, with a pause: nobody guesses quickly."""
        async with self._turn:
            await asyncio.sleep(_PAUSE_S)
            try:
                return await asyncio.to_thread(self._decide, line)
            except Refused as error:
                self._tell(f"{_peer(writer)} was refused: {error}")
                return None, {"refused": str(error)}
            except CellError as error:
                self._tell(f"{_peer(writer)} could not join: {error}")
                return None, {"refused": f"the machine that invites cannot do it now: {error}"}

    def _decide(self, line: bytes) -> tuple[Welcome | None, dict[str, Any]]:
        asked = Asked.of(_read(line))
        if not asked.requests:
            return None, {"welcome": self._look(asked)}
        welcome = self._admit(asked)
        return welcome, {"welcome": asdict(welcome)}


def _read(line: bytes) -> Any:
    with suppress(ValueError):
        return json.loads(line)
    return None


def _peer(writer: asyncio.StreamWriter) -> str:
    name = writer.get_extra_info("peername")
    return str(name[0]) if name else "somebody"


def _context(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:  # this user's alone, gone at once
        Path(file.name).write_bytes(certificate.pem)
        context.load_cert_chain(file.name)
    return context
