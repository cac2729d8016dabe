"""One fault, injected into a running cell and measured: out of the pool, and back."""

import contextlib
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from loadtest.faults import Cell
from loadtest.faults.catalogue import FAULTS, Fault
from loadtest.waiting import until

MIN_LEFT = 1
"""Workers that stay in the pool besides the one that is hit."""


@dataclass(frozen=True)
class Injected:
    """One fault and what the pool did; seconds after the fault began."""

    at: float
    """Seconds since the epoch."""
    name: str
    worker: str
    """Empty where it hit the cell as a whole."""
    out_s: float | None
    """None: it did not leave the pool."""
    back_s: float | None
    """Until the fault was over and the cell whole again; None: not in time."""
    error: str = ""
    allowance_s: float = 0.0
    """How long the worker's phase might last, as it said when it was hit."""

    @property
    def healed(self) -> bool:
        fault = FAULTS[self.name]
        return (
            not self.error
            and self.back_s is not None
            and (self.out_s is not None or not fault.leaves)
        )


def targets(cell: Cell, fault: Fault) -> list[str]:
    """Workers that may be hit now: never the last one of the pool."""
    if not fault.of_worker:
        return [""]
    candidates = sorted(cell.open())
    return candidates if len(candidates) > MIN_LEFT else []


def inject(cell: Cell, name: str, worker: str, max_hold_s: float = math.inf) -> Injected:
    """Inject it, hold it, undo it and wait until the worker or cell is back. Bounded in time."""
    fault, at, error = FAULTS[name], time.time(), ""
    hold_s = min(fault.hold_s, max_hold_s)
    with _Watch(cell, worker) as watch:
        try:
            with fault.inject(cell, worker):
                watch.hits()
                _within(hold_s + 1, lambda: watch.passed_s > hold_s or watch.replaced())
        except (OSError, LookupError, AssertionError, TimeoutError) as problem:
            error = f"{type(problem).__name__}: {problem}"
        _within(3.0 if fault.leaves else 0.3, lambda: watch.out_s is not None)
        healed = _within(fault.heal_s, lambda: cell.serves(*watch.watched))
        back_s = watch.passed_s if healed else None
        return Injected(at, name, worker, watch.out_s, back_s, error, watch.allowance_s)


class _Watch:
    """Looks every few milliseconds whether the worker is out of the pool."""

    def __init__(self, cell: Cell, worker: str) -> None:
        self._cell = cell
        self.watched = [worker] if worker else []
        self._pid_before = self._pid()
        self._began = time.monotonic()
        self._out_at: float | None = None
        self.allowance_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def hits(self) -> None:
        """The fault is there now; preparing it took until now, unless it was seen before."""
        if self._out_at is None:
            self._began = time.monotonic()
        with contextlib.suppress(LookupError):
            if self.watched:
                self.allowance_s = self._cell.heartbeat(self.watched[0]).allowance_s

    @property
    def passed_s(self) -> float:
        return time.monotonic() - self._began

    @property
    def out_s(self) -> float | None:
        return None if self._out_at is None else self._out_at - self._began

    def replaced(self) -> bool:
        """A new process has taken the place of the one that was hit."""
        fresh = self._out_at is not None and self._pid() not in (0, self._pid_before)
        return fresh and self._cell.serves(*self.watched)

    def _pid(self) -> int:
        try:
            return self._cell.pid(self.watched[0]) if self.watched else 0
        except LookupError:
            return 0

    def _look(self) -> None:
        while self.watched and self._out_at is None and not self._over.wait(0.01):
            if self.watched[0] not in self._cell.open():
                self._out_at = time.monotonic()


def _within(timeout_s: float, condition: Callable[[], bool]) -> bool:
    try:
        until(condition, timeout_s, "it holds")
    except TimeoutError:
        return False
    return True


def describe(done: Injected) -> str:
    """One line for people."""
    out = "not out of the pool" if done.out_s is None else f"out after {done.out_s:.2f} s"
    back = "not back in time" if done.back_s is None else f"back after {done.back_s:.1f} s"
    parts = [f"{done.name} {done.worker}".strip(), *([out] if done.worker else []), back]
    return ", ".join([*parts, *([done.error] if done.error else [])])


def missing(cell: Cell, name: str, worker: str) -> str:
    """Why the fault cannot be injected now; empty where it can. ``worker`` may be empty: any."""
    fault = FAULTS[name]
    if reason := fault.missing():
        return reason
    if not cell.whole():
        return "the cell is not whole before the fault: zimage status"
    candidates = targets(cell, fault)
    if not candidates:
        return "only one worker is in the pool, and the last one is left alone"
    if worker and not fault.of_worker:
        return "it hits the cell as a whole: leave --worker away"
    if worker and worker not in candidates:
        return f"{worker} is not in the pool; there are {', '.join(candidates)}"
    return ""
