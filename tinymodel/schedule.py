"""How far a training stage has come, by the clock, over all its runs."""

import math
import time
from dataclasses import dataclass, field


@dataclass
class Schedule:
    """Ends after `minutes` of training or `max_steps`, whichever comes first; survives resuming."""

    minutes: float
    max_steps: int | None = None
    step: int = 0
    elapsed_s: float = 0.0
    _started: float = field(default_factory=time.monotonic)

    def tick(self) -> None:
        """One optimiser step was done."""
        now = time.monotonic()
        self.elapsed_s += now - self._started
        self._started = now
        self.step += 1

    @property
    def progress(self) -> float:
        """0 at the start, 1 at the end."""
        by_steps = self.step / self.max_steps if self.max_steps else 0.0
        return min(1.0, max(self.elapsed_s / (60 * self.minutes), by_steps))

    @property
    def done(self) -> bool:
        """Whether the stage is at its end."""
        return self.progress >= 1.0

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"step": self.step, "elapsed_s": self.elapsed_s}

    def resume(self, state: dict[str, float]) -> None:
        """Goes on where a checkpoint stopped."""
        self.step, self.elapsed_s = int(state["step"]), state["elapsed_s"]
        self._started = time.monotonic()


def cosine(progress: float) -> float:
    """A factor that falls from 1 to 0."""
    return (1 + math.cos(math.pi * min(1.0, max(0.0, progress)))) / 2
