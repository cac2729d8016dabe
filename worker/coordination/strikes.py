"""Strikes: the deaths of workers that are remembered of one request, and the names of their files.

``<worker>-<pid>[-late<seconds>[-patient]][-alone]``. ``alone`` says that nobody else was suspect;
``late`` that the worker did not die by itself: the guard ended it, since a call lasted longer than
the ``seconds`` that it was allowed; ``patient`` that these were four times the usual. The name
tells the event, so whoever notices it first may record it and a second record changes nothing.
"""

import re
from dataclasses import dataclass

from worker.errors import Refused, TooSlow
from worker.types import DrawSpec

ALONE_LIMIT = 2
PATIENCE = 4.0
"""A request that a deadline killed may take so many times the usual allowance, once."""


@dataclass(frozen=True)
class Record:
    """What is remembered of one request."""

    strikes: int = 0
    alone: int = 0
    """Of them, those while it shared its step with nobody."""
    crashes_alone: int = 0
    """Of those, the ones in which the worker died by itself."""
    late_s: int = 0
    """The longest that a call of it was allowed and did not keep to; 0: no deadline killed it."""
    too_slow: bool = False
    """It did not even keep to ``PATIENCE`` times the usual."""
    forgotten_in_s: float = 0.0

    @property
    def refused(self) -> bool:
        return self.too_slow or self.crashes_alone >= ALONE_LIMIT

    @property
    def patience(self) -> float:
        """So many times the usual allowance it may take."""
        return PATIENCE if self.late_s else 1.0

    def refusal(self, asked: str | None) -> Refused:
        """Why it is refused. ``asked`` says what was to be drawn, as in "512x512 in 8 steps";
        None: the request was for something else."""
        again = f"it is not tried again for about {max(1, round(self.forgotten_in_s / 60))} min"
        if self.too_slow:
            return TooSlow(
                f"{asked} took too long: one call of the model was not over after {self.late_s} s, "
                f"though nothing else was drawn, so {again}. Ask for a smaller size or fewer "
                "steps, or have the operators raise timeouts.step_allowance_s.",
                param="size",
            )
        if asked is None:
            return Refused(
                f"Handling this ended {self.crashes_alone} workers, each while nothing else was "
                f"suspect, so {again}: change it, or ask for less at a time."
            )
        return Refused(
            f"Drawing this ended {self.crashes_alone} workers, each while it drew nothing else, "
            f"so {again}: change the prompt, size or steps.",
            param="prompt",
        )


CLEAN = Record()


def asked_text(spec: DrawSpec) -> str:
    """What of ``spec`` decides how long it takes, for ``Record.refusal``."""
    how = spec.parameters
    return f"{how.size_text} in {how.steps} step{'s' * (how.steps != 1)}"


@dataclass(frozen=True)
class Strike:
    """One death, as the name of its file tells it."""

    worker: str
    pid: int
    alone: bool
    late_s: int = 0
    patient: bool = False

    @property
    def event(self) -> tuple[str, int]:
        """Whose death: it counts once, however it was told."""
        return self.worker, self.pid

    @property
    def name(self) -> str:
        late = f"-late{self.late_s}" if self.late_s else ""
        patient = "-patient" if self.late_s and self.patient else ""
        return f"{self.worker}-{self.pid}{late}{patient}" + ("-alone" if self.alone else "")

    @classmethod
    def of(cls, name: str) -> "Strike | None":
        """What ``name`` tells; None where it is no strike's."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        worker, pid, late_s, patient, alone = found.groups()
        return cls(worker, int(pid), bool(alone), int(late_s or 0), bool(patient))


_NAME = re.compile(r"(.+)-(\d+)(?:-late(\d+)(-patient)?)?(-alone)?")
