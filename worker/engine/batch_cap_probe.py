"""When to draw a larger batch again although it has been slow. Pure.

A cap rests on what larger batches took when they were drawn last. Below the cap nothing measures
them any more, so one call that was held up (the first of its shape, a busy host) would decide for
good. Now and then they are drawn again, ever less often while that changes nothing.

What it is for: without it one decoding that was held up (5 ms for one of 0.05) left a cap of one
picture in every fourth run of ``loadtest/overhead``, and a request took 1.2 ms of CPU, not 0.7.
"""

from dataclasses import dataclass

_FIRST_STEPS = 8
_MOST_STEPS = 512
_TRIAL_STEPS = 16  # where pictures of several ages share steps, none is decoded together


@dataclass
class BatchCapProbe:
    """Of one size, whose cap is ``cap`` rows."""

    cap: int
    _patience: int = _FIRST_STEPS
    _steps: int = 0  # within the cap, since the last trial
    _tried: int = 0  # beyond it, in this trial

    @property
    def due(self) -> bool:
        """Whether more rows than the cap should share the next step."""
        return self._steps >= self._patience

    def stepped(self, rows: int) -> None:
        """A step of ``rows`` rows was drawn."""
        if rows <= self.cap:
            self._steps += 1
            return
        self._tried += 1
        if self._tried >= _TRIAL_STEPS:
            self._over()

    def decoded(self, rows: int) -> None:
        """``rows`` rows were decoded, which ends a drawing."""
        if rows > self.cap:
            self._over()

    def _over(self) -> None:
        self._steps = self._tried = 0
        self._patience = min(2 * self._patience, _MOST_STEPS)
