"""Ports for servers that a test starts.

Below those that Linux gives to clients (32,768 and up), so that no connection takes one between its
choice and its use; each once in a process, and in another range than processes beside it.
"""

import itertools
import os
import socket
from collections.abc import Iterator

_FIRST, _RANGES, _PORTS = 10_000, 22, 1000


def _candidates() -> Iterator[int]:
    first = _FIRST + os.getpid() % _RANGES * _PORTS
    return (first + n % _PORTS for n in itertools.count())


_next = _candidates()


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    return next(port for port in _next if _is_free(port))


def free_ports(count: int) -> list[int]:
    return [free_port() for _ in range(count)]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as nginx binds
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
