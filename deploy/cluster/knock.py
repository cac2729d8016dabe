"""At the door, from outside: a machine that wants to join speaks to the one that invited it."""

import hashlib
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from deploy.cell import CellError
from deploy.cluster.invites import Token

T = TypeVar("T")

_CONNECT_S = 10.0
_ANSWER_S = 30.0
_ATTEMPTS = 3
_PAUSE_S = 2.0
_MAX_BYTES = 1 << 20


class Refused(CellError):
    """The door says no, and why."""


Take = Callable[[dict[str, Any], str], T]
"""Gets the welcome, and this machine's address as the door sees it."""


def ask(token: Token, told: dict[str, Any], take: "Take[T]") -> T:
    """What ``take`` makes of the welcome; the door hears that it has arrived when ``take`` is done.
    The same is asked again where an answer is lost. ``Refused``, or ``CellError``: nobody is there,
    or somebody else."""
    for left in reversed(range(_ATTEMPTS)):
        try:
            with _connected(token) as connection:
                welcome = _asked(connection, told)
                taken = take(welcome, str(connection.getsockname()[0]))
                with suppress(OSError):  # it is here, whether or not they hear of it
                    connection.sendall(b"\n")
                return taken
        except (OSError, ValueError) as error:
            if not left:
                raise CellError(
                    f"the door at {token.door} does not answer ({error}): does zimage hosts invite "
                    "still wait there, and does a firewall let this machine through?"
                ) from None
            time.sleep(_PAUSE_S)
    raise AssertionError


@contextmanager
def _connected(token: Token) -> Iterator[ssl.SSLSocket]:
    host, _, port = token.door.rpartition(":")
    with (
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S) as plain,
        _context().wrap_socket(plain) as connection,
    ):
        shown = connection.getpeercert(binary_form=True) or b""
        if hashlib.sha256(shown).digest() != token.pin:  # before it hears anything
            raise CellError(
                f"{token.door} is not the machine that made the token: it shows another "
                "certificate; make another token, and look who answers there"
            )
        yield connection


def _asked(connection: ssl.SSLSocket, told: dict[str, Any]) -> dict[str, Any]:
    connection.settimeout(_ANSWER_S)
    connection.sendall(json.dumps(told).encode() + b"\n")
    answer = _line(connection)
    welcome = answer.get("welcome")
    if not isinstance(welcome, dict):
        raise Refused(str(answer.get("refused", "the door gave no answer")))
    return welcome


def _line(connection: ssl.SSLSocket) -> dict[str, Any]:
    """``OSError`` where it ends early: then the same may be asked again."""
    received = bytearray()
    while not received.endswith(b"\n"):
        part = connection.recv(65_536)
        if not part or len(received) > _MAX_BYTES:
            raise ConnectionError("the connection ended before the answer")
        received += part
    found = json.loads(received)
    return found if isinstance(found, dict) else {}


def _context() -> ssl.SSLContext:
    """The pin says who it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
