"""Ask a worker over its unix socket: one small HTTP request, one bounded answer.

Two calls of asyncio's streams instead of an HTTP client: eight workers asked five times a second
must not cost the machine more than 2 % of a core.
"""

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MAX_ANSWER_BYTES = 64 * 1024


class NobodyListens(Exception):
    """The socket is missing or refuses, or its process died before it answered."""


class NoAnswer(Exception):
    """The worker is there and says nothing, or nothing that is HTTP."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """Why a worker that answered 503 is not ready; "" otherwise."""
        return str(self.body.get("reason") or "")


async def ask(socket: Path, path: str, *, method: str = "GET", timeout_s: float) -> Answer:
    """The answer to one request; ``NobodyListens`` or ``NoAnswer`` (also after ``timeout_s``)."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _exchange(socket, path, method)
    except (FileNotFoundError, ConnectionError, asyncio.IncompleteReadError) as error:
        raise NobodyListens(str(error)) from error
    except (OSError, ValueError, asyncio.LimitOverrunError) as error:
        raise NoAnswer(str(error) or f"no answer in {timeout_s:g} s") from error


async def _exchange(socket: Path, path: str, method: str) -> Answer:
    reader, writer = await asyncio.open_unix_connection(str(socket), limit=_MAX_ANSWER_BYTES)
    try:
        # HTTP/1.0: the answer is never chunked and ends with the connection.
        request = f"{method} {path} HTTP/1.0\r\nHost: guard\r\nContent-Length: 0\r\n\r\n"
        writer.write(request.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        return Answer(_status(head), _json(await _rest(reader)))
    finally:
        writer.close()


async def _rest(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while len(body) < _MAX_ANSWER_BYTES and (part := await reader.read(_MAX_ANSWER_BYTES)):
        body += part
    return body


def _status(head: bytes) -> int:
    return int(head.split(maxsplit=2)[1])


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
