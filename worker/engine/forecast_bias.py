"""How much longer than foreseen waits became lately, since others came meanwhile. Pure.

What it is for: of the waits that ``loadtest/waits`` found wrong by more than a quarter, seven in
eight had become longer than foreseen.
"""

_SPAN_S = 60.0
"""Seconds of waits that what is learnt looks back on, about."""
_MOST = 1.15
"""Some are overtaken and some are not. What is told must stay true of the others, within the
quarter that is promised; more was wrong about them more often than right about the rest."""


class ForecastBias:
    """Learns the factor between foreseen and true waits: a forecast cannot know who will come.

    Each wait counts by its length; it starts at 1, as if a while of good forecasts had been seen.
    """

    def __init__(self) -> None:
        self._foreseen_s = self._true_s = _SPAN_S

    @property
    def factor(self) -> float:
        """So many times as long as foreseen, from 1 to 1.15."""
        return min(max(self._true_s / self._foreseen_s, 1.0), _MOST)

    def learn(self, foreseen_s: float, true_s: float) -> None:
        """A wait of ``foreseen_s`` seconds became one of ``true_s``."""
        kept = max(0.0, 1.0 - max(foreseen_s, true_s) / _SPAN_S)
        self._foreseen_s = kept * self._foreseen_s + foreseen_s
        self._true_s = kept * self._true_s + true_s
