"""Fills the history: who is in the pool since when, and what clients got."""

import asyncio
import logging
import time
from collections.abc import Sequence
from statistics import fmean

from prometheus_client import CollectorRegistry

from deploy.guard.gpus import Gpus
from deploy.guard.history import History
from deploy.guard.traffic import AccessLog, Traffic
from deploy.guard.watch import Watch
from deploy.layout import Layout

_READ_INTERVAL_S = 1.0
_log = logging.getLogger("guard")


class Observer:
    """Changes nothing in the cell, and a full disk costs it no more than its history."""

    def __init__(
        self,
        watches: Sequence[Watch],
        gpus: Gpus,
        layout: Layout,
        registry: CollectorRegistry,
        history_interval_s: float,
    ) -> None:
        self._watches, self._gpus = watches, gpus
        self._history = History(
            layout.history_json, [watch.name for watch in watches], history_interval_s
        )
        self._traffic = Traffic(AccessLog(layout.access_log), registry)
        self._lanes: dict[str, str] = {}
        self._drawn: dict[str, tuple[int, int]] = {}  # pid and its total, by worker
        self._images = 0  # since the last point
        self._news = False  # since the last save

    def look(self, watch: Watch) -> None:
        """Note whether ``watch`` is in the pool, or why not. Cheap where nothing has changed."""
        lane = watch.lane
        if self._lanes.get(watch.name) != lane:
            self._lanes[watch.name] = lane
            self._history.enter(watch.name, lane)
            self._news = True

    async def observe_for_ever(self) -> None:
        added_at = time.monotonic()
        while True:
            await asyncio.sleep(_READ_INTERVAL_S)
            try:
                await asyncio.to_thread(self._traffic.read)
                # Often: what a worker has made since the last time is lost when it dies.
                self._images += sum(self._drawn_since(watch) for watch in self._watches)
                if time.monotonic() - added_at >= self._history.interval_s:
                    added_at = time.monotonic()
                    self._history.add(self._point())
                    self._news = True
                if self._news:
                    self._news = False
                    await asyncio.to_thread(self._history.save, self._history.dump())
            except OSError as error:
                _log.error("cannot keep the history: %s", error)

    def _point(self) -> dict[str, float | None]:
        window, images = self._traffic.take_window(), self._images
        self._images = 0
        p50_s, p95_s = window.percentiles_s()
        answers = [w.answer.body for w in self._watches if w.answer]
        members = [w for w in self._watches if w.gate.is_open]
        cards = [c.utilization_ratio for d in self._gpus.devices if (c := self._gpus.get(d))]
        used = [ratio for ratio in cards if ratio is not None]
        return {
            "at": round(time.time(), 1),
            "images": images,
            "answered": window.answered,
            "refused": window.refused,
            "failed": window.failed,
            "replayed": window.replayed,
            "p50_s": p50_s,
            "p95_s": p95_s,
            "queued": sum(body.get("queued", 0) for body in answers),
            "running": sum(body.get("running", 0) for body in answers),
            "wait_s": min((w.predicted_wait_s for w in members), default=None),
            "pool": len(members),
            "gpu_ratio": round(fmean(used), 3) if used else None,
        }

    def _drawn_since(self, watch: Watch) -> int:
        if watch.answer is None or not watch.pid:
            return 0
        total = int(watch.answer.body.get("drawn", 0))
        pid, before = self._drawn.get(watch.name, (0, total))
        self._drawn[watch.name] = watch.pid, total
        return total - before if pid in (0, watch.pid) else total
