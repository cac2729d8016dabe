"""What clients got, from nginx's access log as it grows.

Only nginx sees every answer: also those that no worker gave, and which of them were replayed.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from statistics import quantiles
from typing import IO, Any

import orjson
from prometheus_client import CollectorRegistry, Counter, Histogram

from worker.bounds import DRAWINGS, LATENCY_BUCKETS_S

_OTHERS = ("images", "jobs", "models", "session", "uploads", "usage")
_ROUTES = (*DRAWINGS, *(f"/v1/{name}" for name in _OTHERS), "/v1")
_CODES = (200, 400, 429, 499, 500, 503, 504)
_REFUSED = frozenset({429, 503})
_MAX_READ_BYTES = 8 << 20  # more at once would keep others waiting
_MAX_TIMES = 20_000


class AccessLog:
    """Follows the file through its rotations. What was there before is not read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._partial = b""
        with suppress(FileNotFoundError):
            self._file = path.open("rb")
            self._file.seek(0, os.SEEK_END)

    def lines(self) -> list[bytes]:
        """Whole lines since the last call. Blocks on the disk."""
        if self._file is None:
            if not self._path.exists():
                return []
            self._file = self._path.open("rb")
        data = self._file.read(_MAX_READ_BYTES)
        if len(data) < _MAX_READ_BYTES and self._was_moved(self._file):
            data += self._file.read()  # what came between reading and looking
            self._file.close()
            self._file = self._path.open("rb")
        *whole, self._partial = (self._partial + data).split(b"\n")
        return whole

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _was_moved(self, file: IO[bytes]) -> bool:
        """Whether nginx writes to another file now; until it does, it writes to the moved one."""
        try:
            return not os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False


@dataclass
class Window:
    """Drawing requests since the last look."""

    answered: int = 0
    refused: int = 0
    failed: int = 0
    replayed: int = 0
    seconds: list[float] = field(default_factory=list)
    """Of those that were answered with pictures."""

    def percentiles_s(self) -> tuple[float | None, float | None]:
        """p50 and p95; None where nothing was drawn."""
        if not self.seconds:
            return None, None
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        cuts = quantiles(self.seconds, n=20, method="inclusive")
        return round(cuts[9], 3), round(cuts[18], 3)


class Traffic:
    """Counts for Prometheus, and a window of the latest for the history."""

    def __init__(self, log: AccessLog, registry: CollectorRegistry) -> None:
        self.log = log
        self._window = Window()
        self._requests = Counter(
            "zimage_front_requests",
            "Answers to clients by route and status (499: the client left).",
            ("route", "code"),
            registry=registry,
        )
        self._duration = Histogram(
            "zimage_front_request_duration_seconds",
            "From the first byte of a client's request to the last of its answer.",
            ("route",),
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._replays = Counter(
            "zimage_front_replays",
            "Requests that one worker had and another one got, tries counted.",
            registry=registry,
        )
        self._bytes = Counter("zimage_front_sent_bytes", "Bytes sent.", registry=registry)
        for route in DRAWINGS:
            for code in _CODES:
                self._requests.labels(route, code)  # from zero on: a first refusal is an increase

    def read(self) -> None:
        """Count what nginx has written since the last call. Blocks."""
        for line in self.log.lines():
            # A line that a full disk cut short, and a status of 000 that is none.
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                # nginx writes UTF-8 alone; a line that is not all the same is an answer to count.
                self._count(orjson.loads(line.decode(errors="replace")))

    def take_window(self) -> Window:
        """What was counted since the last call."""
        window, self._window = self._window, Window()
        return window

    def _count(self, line: dict[str, Any]) -> None:
        route, status, seconds = route_of(line["path"]), int(line["status"]), float(line["seconds"])
        if not 100 <= status <= 599:
            return
        self._requests.labels(route, status).inc()
        self._duration.labels(route).observe(seconds)
        self._bytes.inc(int(line["bytes"]))
        if route in DRAWINGS:
            replays = replays_of(line["upstream_connect_s"], line.get("upstream_status", ""))
            self._replays.inc(replays)
            self._note(status, seconds, replays)

    def _note(self, status: int, seconds: float, replays: int) -> None:
        window = self._window
        window.replayed += replays
        window.answered += status == 200
        window.refused += status in _REFUSED
        window.failed += status >= 500 and status not in _REFUSED
        if status == 200 and len(window.seconds) < _MAX_TIMES:
            window.seconds.append(seconds)


def route_of(path: str) -> str:
    """One of a few names, whatever clients ask for."""
    return next((r for r in _ROUTES if path == r or path.startswith(f"{r}/")), "page")


def replays_of(connect_times: str, statuses: str = "") -> int:
    """How often the request went to one more worker after one had it. nginx's lists of tries:
    ``connect_times``, "-" for a gate that refused; ``statuses``, 421 of whoever only read which
    model it is for, 403 of a host that has not that model."""
    tries = zip_longest(_each(connect_times), _each(statuses))
    had = sum(
        time not in (None, "", "-") and status not in ("421", "403") for time, status in tries
    )
    return max(0, int(had) - 1)


def _each(listed: str) -> list[str]:
    return [part.strip() for part in listed.replace(":", ",").split(",")]
