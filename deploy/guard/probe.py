"""Ask a worker over its unix socket: one small HTTP request, one bounded answer.

A bare socket instead of an HTTP client: eight workers asked five times a second must not cost the
machine more than 2 % of a core. HTTP/1.0: the answer is never chunked and ends with the connection.
"""

import asyncio
import json
import socket
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


async def ask(path: Path, url: str, *, method: str = "GET", timeout_s: float) -> Answer:
    """The answer to one request; ``NobodyListens`` or ``NoAnswer`` (also after ``timeout_s``)."""
    try:
        async with asyncio.timeout(timeout_s):
            reply = await _exchange(
                path, f"{method} {url} HTTP/1.0\r\nHost: guard\r\nContent-Length: 0\r\n\r\n"
            )
    except (FileNotFoundError, ConnectionError) as error:
        raise NobodyListens(str(error)) from error
    except OSError as error:
        raise NoAnswer(str(error) or f"no answer in {timeout_s:g} s") from error
    head, end, body = reply.partition(b"\r\n\r\n")
    if not end:
        raise NobodyListens("the connection broke off")
    return Answer(_status(head), _json(body))


async def _exchange(path: Path, request: str) -> bytes:
    loop, reply = asyncio.get_running_loop(), b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.setblocking(False)
        # On a unix socket this is done at once or fails at once (BlockingIOError: a full backlog),
        # and so small a request always fits the socket's buffer.
        connection.connect(str(path))
        connection.send(request.encode())
        while len(reply) < _MAX_ANSWER_BYTES:
            part = await loop.sock_recv(connection, _MAX_ANSWER_BYTES)
            if not part:
                break
            reply += part
    return reply


def _status(head: bytes) -> int:
    try:
        return int(head.split(maxsplit=2)[1])
    except (IndexError, ValueError) as error:
        raise NoAnswer(f"not HTTP: {head[:40]!r}") from error


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
