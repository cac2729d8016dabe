"""How long a call may take before it counts as hung: many times what its shape should take. Pure.

A flat limit kills whatever is larger, or drawn on a slower machine, than whoever chose it had in
mind. So the prediction decides, for sizes that were never drawn too: those follow from the sizes
that were, by their area.
"""

from collections.abc import Sequence

from worker.coordination.heartbeat import Phase
from worker.engine.costs import Costs, Kind
from worker.engine.limits import Limits
from worker.engine.queue import Picture, lora_rows_of, rows_of

KINDS: dict[Phase, Kind] = {Phase.ENCODE: "encode", Phase.STEP: "step", Phase.DECODE: "decode"}

_SLACK = 10.0
"""Times the prediction. Neighbours on the machine take their share of it, and so do sizes that
cost more than their area says (attention grows with its square)."""
_WHOLE_SLACK = 2.0
"""Times a drawing of one call: its text and its decoding happen beside its steps, unmeasured."""
_LORA_READING_S = 30.0
"""For adapters, which are read and checked as their drawing is started: up to a gigabyte, perhaps
from a disk that is cold."""
_SHORT_TEXT = 64  # characters: a shorter text takes as long


class Allowances:
    """``stepwise`` False: one call draws from text to pixels. Not thread-safe: under the lock that
    goes for ``costs``."""

    def __init__(self, limits: Limits, costs: Costs, *, stepwise: bool) -> None:
        self._limits, self._costs = limits, costs
        self._stepwise = stepwise
        self._text_s = 0.0  # a character, in the slowest encoding so far

    def allowance_s(
        self, phase: Phase, pictures: Sequence[Picture], kind: Kind | None = None
    ) -> float:
        """Seconds that ``phase`` may last for ``pictures``: at least ``step_allowance_s``."""
        kind = kind or KINDS[phase]
        if not self._costs.knows(kind):
            # Nothing says yet whether this machine takes milliseconds or minutes.
            return max(self._limits.step_allowance_s, self._limits.compile_allowance_s)
        reading_s = _LORA_READING_S if kind == "encode" and lora_rows_of(pictures) else 0.0
        return reading_s + max(self._limits.step_allowance_s, self._likely_s(phase, pictures, kind))

    def learn(self, phase: Phase, pictures: Sequence[Picture], seconds: float) -> None:
        """A call took ``seconds``. Texts differ in length, and a cached one takes no time: their
        average says nothing about the next."""
        if phase is Phase.ENCODE:
            text_s = seconds / _characters(pictures)
            most_s = 4 * self._text_s or text_s  # one that was held up must not count for ever
            self._text_s = max(self._text_s, min(text_s, most_s))

    def _likely_s(self, phase: Phase, pictures: Sequence[Picture], kind: Kind) -> float:
        rows = rows_of(pictures)
        slack = _SLACK
        if phase is Phase.STEP and not self._stepwise:
            slack = max(slack, _WHOLE_SLACK * pictures[0].spec.parameters.drawn_steps)
        likely_s = slack * self._costs.predict_s(kind, pictures[0].size, rows)
        if kind == "encode":
            text_s = _SLACK * self._text_s * _characters(pictures)
            likely_s = max(likely_s, min(text_s, self._limits.compile_allowance_s))
        return likely_s


def _characters(pictures: Sequence[Picture]) -> int:
    texts = (len(p.spec.prompt) + sum(map(len, p.spec.parameters.texts.values())) for p in pictures)
    return sum(max(_SHORT_TEXT, length) for length in texts)
