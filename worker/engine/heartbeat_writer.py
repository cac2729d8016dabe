"""Keeps the heartbeat of the driver: every call into the pipeline begins with one."""

import time
from collections.abc import Hashable, Sequence
from math import inf

from worker.coordination.heartbeat import HeartbeatFile, Phase, Running, digest
from worker.engine.limits import Limits
from worker.engine.queue import Picture, lora_rows_of, rows_of
from worker.engine.recently import Recently
from worker.engine.state import Activity

IDLE_ALLOWANCE_S = 3.0
IDLE_BEAT_S = 1.0  # an idle driver beats this often
_MAX_SHAPES = 2048  # beyond, one that was not drawn for long counts as new


class HeartbeatWriter:
    """``compiles``: the first call of a shape may compile, which must not look like a hang."""

    def __init__(self, heartbeat: HeartbeatFile, limits: Limits, *, compiles: bool) -> None:
        self._heartbeat = heartbeat
        self._limits = limits
        self._compiles = compiles
        self._seen: Recently[Hashable, None] = Recently(_MAX_SHAPES)
        self.activity = Activity(Phase.IDLE, time.monotonic(), inf)  # its thread has not begun

    def idle(self, allowance_s: float = IDLE_ALLOWANCE_S) -> None:
        """Nothing to do. The thread says so again within ``allowance_s``, or it stands still."""
        self._heartbeat.enter(Phase.IDLE, allowance_s)
        self.activity = Activity(Phase.IDLE, time.monotonic(), allowance_s)

    def spare(self) -> None:
        """Something for nobody, which may compile."""
        allowance_s = self._limits.compile_allowance_s
        self._heartbeat.enter(Phase.COMPILE, allowance_s)
        self.activity = Activity(Phase.COMPILE, time.monotonic(), allowance_s)

    def enter(
        self,
        phase: Phase,
        pictures: Sequence[Picture],
        allowance_s: float,
        kind: str | None = None,
    ) -> Hashable:
        """``phase`` begins for ``pictures`` and may last ``allowance_s``, or as many times as long
        as one of their requests is granted; its shape. ``kind``: of the call, where its phase does
        not tell."""
        rows = rows_of(pictures)
        shape = _shape(phase, pictures, rows, kind)
        if self._compiles and shape not in self._seen:
            phase, allowance_s = Phase.COMPILE, max(allowance_s, self._limits.compile_allowance_s)
        requests = [entry.request for entry in dict.fromkeys(p.entry for p in pictures)]
        running = [Running(digest(r.id), digest(r.fingerprint)) for r in requests]
        patience = max(request.patience for request in requests)
        allowance_s *= patience
        self._heartbeat.enter(
            phase,
            allowance_s,
            running,
            alone=len(requests) == 1,
            patient=patience > 1.0,
            struck=any(request.exclusive for request in requests),
        )
        now = time.monotonic()
        self.activity = Activity(phase, now, allowance_s, len(requests), rows)
        return shape

    def learn(self, shape: Hashable) -> bool:
        """A call of ``shape`` has succeeded; whether its time tells what the next will take."""
        typical = not self._compiles or shape in self._seen
        self._seen[shape] = None
        self._seen.touch(shape)
        return typical


def _shape(
    phase: Phase, pictures: Sequence[Picture], rows: int, kind: str | None = None
) -> Hashable:
    if kind == "image":  # encoded one by one
        return kind, pictures[0].size
    adapted = lora_rows_of(pictures) > 0  # goes another way, with kernels of its own
    if phase is Phase.ENCODE:  # of any text: only the first call of all sets the device up
        return phase, adapted
    return phase, pictures[0].sample and pictures[0].sample.group, rows, adapted
