"""What the engine tells health checks and metrics about itself."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from worker.coordination.heartbeat import Phase


class Activity(NamedTuple):
    """What the driver does since when (monotonic seconds), and how long that may take."""

    phase: Phase
    since: float
    allowance_s: float
    requests: int = 0  # inside the running call
    rows: int = 0

    def stuck(self, now: float | None = None) -> bool:
        """Whether a call lasts longer than it may, or the idle thread was not heard so long."""
        age_s = (time.monotonic() if now is None else now) - self.since
        return self.phase is not Phase.ENDED and age_s > self.allowance_s


@dataclass
class Counters:
    """Totals since the start."""

    steps: int = 0
    pictures_drawn: int = 0
    requests_done: int = 0
    requests_failed: int = 0
    requests_cancelled: int = 0
    requests_handed_back: int = 0
    out_of_memory: int = 0
    busy_s: float = 0.0  # of the thread that draws, while there was something to draw
    device_s: float = 0.0  # of that, inside the pipeline


class Backlog(NamedTuple):
    """What waits for the engine: requests that have not begun and that have, and the seconds that
    one would wait that came now."""

    queued: int = 0
    running: int = 0
    predicted_wait_s: float = 0.0


@dataclass(frozen=True)
class EngineState:
    """One consistent look at the engine."""

    started: bool
    draining: bool
    broken: str | None  # why it can draw no more
    stuck: bool
    phase: Phase
    phase_age_s: float
    queued: int  # requests none of whose pictures has been in a step
    running: int  # requests that have begun
    batch: int  # rows in the running call
    predicted_wait_s: float  # of a request that came now
    steps_done: int
    totals: Mapping[str, float]
    batches: Mapping[int, int]  # steps by the pictures that shared them
    caption_lookups: tuple[int, int] | None  # hits and misses of the cache, where there is one
    step_ms: Mapping[str, float]  # by "WIDTHxHEIGHT/rows"
    refused_sizes: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether a request that came now would be taken, load aside."""
        return self.started and not (self.draining or self.broken or self.stuck)
