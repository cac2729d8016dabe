"""Which shapes find room on the device, as far as drawing them has told. Pure but for the clock.

Memory may be gone elsewhere for a while, and then a shape finds no room that others draw without
trouble. So the first time only says "not here, not now"; a shape that finds none again later is too
large, and even that is looked at again after some minutes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from worker.engine.queue import Size
from worker.engine.recently import Recently

Shape = tuple[Size, int]
"""Size and rows of one picture."""

MAX_SHAPES = 256
"""So many are known; one that is forgotten is tried again."""
DOUBT_S = 30.0
REFUSED_S = 600.0


class Verdict(Enum):
    """Why a shape found no room."""

    LOST = "it was drawn before: the memory has gone elsewhere"
    DOUBTED = "perhaps for the moment only"
    TOO_LARGE = "twice, some time apart"


@dataclass(frozen=True)
class Closed:
    """Not to be tried before ``until`` (seconds of the clock)."""

    verdict: Verdict
    until: float


class OomTracker:
    """``now`` is a clock in seconds that never goes back."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._drawn: Recently[Shape, None] = Recently(MAX_SHAPES)
        self._failed: Recently[Shape, Closed] = Recently(MAX_SHAPES)

    def drew(self, shape: Shape) -> None:
        """One picture of ``shape`` was drawn."""
        self._drawn[shape] = None
        self._drawn.touch(shape)
        self._failed.pop(shape, None)

    def failed(self, shape: Shape) -> Verdict:
        """One picture of ``shape`` found no room, though it was alone."""
        if shape in self._drawn:
            return Verdict.LOST
        before, now = self._failed.get(shape), self._now()
        if before is None:
            self._failed[shape] = Closed(Verdict.DOUBTED, now + DOUBT_S)
        elif before.verdict is Verdict.TOO_LARGE or now >= before.until:
            self._failed[shape] = Closed(Verdict.TOO_LARGE, now + REFUSED_S)
        return self._failed[shape].verdict

    def closed_to(self, shape: Shape) -> Closed | None:
        """Why ``shape`` must not be tried now, if so."""
        closed = self._failed.get(shape)
        return closed if closed is not None and self._now() < closed.until else None

    def left_s(self, closed: Closed) -> float:
        """Seconds until what ``closed`` is about may be tried again."""
        return max(0.0, closed.until - self._now())

    def too_large(self) -> list[Size]:
        """Sizes that are refused now, in order."""
        closed = {shape: self.closed_to(shape) for shape in self._failed}
        return sorted(s for (s, _), c in closed.items() if c and c.verdict is Verdict.TOO_LARGE)
