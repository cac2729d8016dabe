"""What a worker is handling outside its engine, where it can be read after its death.

A table of fixed size at the end of the heartbeat's file: one line for each request whose handler
may be at work, whatever its route. A request that waits in the engine or is drawn there has none,
for the heartbeat itself says who is in the running step; nor has one whose answer has begun, for
nginx sends that one nowhere else. Beyond ``MAX_HANDLED`` lines a request is not recorded.
"""

import mmap
import struct
import threading
from collections import deque
from pathlib import Path

from worker.coordination.heartbeat import HEARTBEAT_BYTES, IN_FLIGHT_BYTES, Running

_LINE = struct.Struct("<16s16sQ")  # digests of request id and fingerprint, struck
MAX_HANDLED = IN_FLIGHT_BYTES // _LINE.size
_NOBODY = bytes(16)


class InFlight:
    """The table in ``mapped``. From any thread."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._mapped = mapped
        lines = range(MAX_HANDLED)
        self._free = deque(HEARTBEAT_BYTES + line * _LINE.size for line in lines)

    def add(self, request: bytes, fingerprint: bytes, *, struck: bool) -> int | None:
        """Write a line; where it stands, or None where none is free."""
        try:
            line = self._free.popleft()
        except IndexError:
            return None
        _LINE.pack_into(self._mapped, line, request, fingerprint, struck)
        return line

    def rewrite(self, line: int, request: bytes, fingerprint: bytes, *, struck: bool) -> None:
        """Put something else into what ``add`` wrote."""
        _LINE.pack_into(self._mapped, line, request, fingerprint, struck)

    def remove(self, line: int) -> None:
        """Clear what ``add`` wrote."""
        _LINE.pack_into(self._mapped, line, _NOBODY, _NOBODY, False)
        self._free.append(line)


class Handling:
    """One request's line, which is there while its handler may be at work: from ``resume`` to
    ``pause``, as often as that may be, until ``close``. From any thread."""

    def __init__(self, table: InFlight, request: bytes) -> None:
        self._table, self._request = table, request
        self._fingerprint, self._struck = request, False
        self._lock = threading.Lock()
        self._works = 0
        self._line: int | None = None
        self._closed = False

    @property
    def struck(self) -> bool:
        """Whether it is suspect already."""
        return self._struck

    def call(self, fingerprint: bytes, *, struck: bool) -> None:
        """From now on it is known by ``fingerprint``; before, by its id alone."""
        with self._lock:
            self._fingerprint, self._struck = fingerprint, struck
            if self._line is not None:
                line, request = self._line, self._request
                self._table.rewrite(line, request, fingerprint, struck=struck)

    def resume(self) -> None:
        """Its handler, or a thread for it, goes to work."""
        with self._lock:
            if self._closed:
                return
            self._works += 1
            if self._line is None:
                self._add()

    def pause(self) -> None:
        """What ``resume`` began is over."""
        if not self._works:
            return
        with self._lock:
            self._works = max(0, self._works - 1)
            if not self._works:
                self._remove()

    def close(self) -> None:
        """It is answered."""
        with self._lock:
            self._closed, self._works = True, 0
            self._remove()

    def _add(self) -> None:
        self._line = self._table.add(self._request, self._fingerprint, struck=self._struck)

    def _remove(self) -> None:
        if self._line is not None:
            self._table.remove(self._line)
            self._line = None


def read_in_flight(beat_path: Path) -> list[Running]:
    """What the worker of the heartbeat at ``beat_path`` is handling, or was when it died."""
    try:
        table = beat_path.read_bytes()[HEARTBEAT_BYTES : HEARTBEAT_BYTES + IN_FLIGHT_BYTES]
    except OSError:
        return []
    whole = table[: len(table) // _LINE.size * _LINE.size]
    lines = (line for line in _LINE.iter_unpack(whole) if line[0].strip(b"\0"))
    return [Running(request, fingerprint, bool(struck)) for request, fingerprint, struck in lines]
