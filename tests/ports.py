"""Ports for servers that a test starts.

Below those that Linux gives to clients (32,768 and up), so that no connection takes one between its
choice and its use; each once in a process, which has a range for itself while it lives.
"""

import itertools
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from worker.file_lock import try_lock

_FIRST, _RANGES, _PORTS = 10_000, 22, 1000


def _candidates() -> Iterator[int]:
    first = _FIRST + _own_range() * _PORTS
    yield from (first + n % _PORTS for n in itertools.count())


def _own_range() -> int:
    """A range that no other process has, until this one ends."""
    for number in range(_RANGES):
        path = Path(tempfile.gettempdir(), f"zimage-test-ports-{os.getuid()}-{number}")
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if try_lock(lock):
            return number
        os.close(lock)
    raise OSError(f"{_RANGES} processes test here already: no ports are left for another")


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
