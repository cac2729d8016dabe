"""The last hours of the cell for the ops page: a ring in memory, written to a file.

Points are one row an interval; a lane is a worker's states in the pool with their
beginnings. Prometheus keeps longer and finer; this is there without it.
"""

import json
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from worker import whole_file

INTERVAL_S = 15.0
KEPT_POINTS = 1440  # six hours
KEPT_CHANGES = 500  # of one worker
UNKNOWN = "unknown"

COLUMNS = (
    "at",
    "images",
    "answered",
    "refused",
    "failed",
    "replayed",
    "p50_s",
    "p95_s",
    "queued",
    "running",
    "wait_s",
    "pool",
    "gpu_ratio",
)
"""``images`` to ``replayed`` are counts of the time since the row before."""


class History:
    """``path`` is read at the start and replaced whole by ``save``."""

    def __init__(self, path: Path, workers: Iterable[str], interval_s: float = INTERVAL_S) -> None:
        self._path = path
        self.interval_s = interval_s
        self._workers = tuple(workers)
        self._points: deque[list[float | None]] = deque(maxlen=KEPT_POINTS)
        self._lanes: dict[str, deque[tuple[float, str]]] = {
            worker: deque(maxlen=KEPT_CHANGES) for worker in self._workers
        }
        self._load()

    def add(self, point: Mapping[str, float | None]) -> None:
        """One row; what is not known may be left out."""
        self._points.append([point.get(column) for column in COLUMNS])

    def enter(self, worker: str, state: str) -> None:
        """``worker`` is in the pool (``in``), or out in ``state``, from now on."""
        lane = self._lanes[worker]
        if not lane or lane[-1][1] != state:
            lane.append((round(time.time(), 1), state))

    def dump(self) -> dict[str, Any]:
        """As the file has it."""
        return {
            "interval_s": self.interval_s,
            "columns": COLUMNS,
            "points": list(self._points),
            "lanes": {worker: list(lane) for worker, lane in self._lanes.items()},
        }

    def save(self, dumped: dict[str, Any]) -> None:
        """Blocks on the disk."""
        whole_file.replace(self._path, json.dumps(dumped, separators=(",", ":")))

    def _load(self) -> None:
        try:
            old = json.loads(self._path.read_bytes())
            if tuple(old["columns"]) != COLUMNS:
                return
            points = [[float(at), *rest] for at, *rest in old["points"]]
            if any(len(point) != len(COLUMNS) for point in points):
                return
            lanes = {
                worker: [(float(at), str(state)) for at, state in old["lanes"].get(worker, ())]
                for worker in self._workers
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return  # of another version, or cut short: begin anew
        self._points.extend(points)
        for worker, lane in lanes.items():
            self._lanes[worker].extend(lane)
            if lane and points:  # nobody looked since then
                self._lanes[worker].append((max(points[-1][0], lane[-1][0]), UNKNOWN))
