"""A forecast that may be a moment old, for those who ask often. Pure but for the clock.

In a long overload dozens of requests a second are refused and health checks ask five times a
second, while the thread that draws waits for the lock. So looking ahead takes a bounded share of
the time here: the longer it takes, the older is what is told.
"""

import time
from collections.abc import Callable, Mapping

from worker.engine.queue import Entry
from worker.engine.recently import Recently
from worker.engine.request import Queued

_MAX_ENTRIES = 2048
"""Those who came since the last look are written down, refused ones too."""
SHARE = 200
"""Looking ahead is done every so many times what it takes, at least."""

Ahead = tuple[Mapping[Entry, Queued], float]
"""Places of everybody who is waiting or expected, and the wait of somebody new, in seconds."""


class ForecastCache:
    """``look`` computes a forecast; ``now`` is a clock in seconds that never goes back."""

    def __init__(
        self, look: Callable[[], Ahead], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._look, self._now = look, now
        self._waits_s: Recently[Entry, float] = Recently(_MAX_ENTRIES)  # at ``_at``
        self._newcomers_s = 0.0
        self._at = self._until = float("-inf")

    def newcomers_wait_s(self) -> float:
        """Seconds that somebody new would wait who came now."""
        age_s = self._age_s()  # first, for it may look again
        return max(0.0, self._newcomers_s - age_s)

    def waits_s(self, key: str | None = None) -> list[float]:
        """Seconds until each (of ``key``) that waits or is expected begins."""
        age_s = self._age_s()
        return [
            max(0.0, wait_s - age_s)
            for entry, wait_s in self._waits_s.items()
            if key in (None, entry.request.key) and not (entry.begun or entry.over)
        ]

    def behind_s(self, entry: Entry) -> float | None:
        """Seconds that ``entry`` waits behind those that it cannot overtake, the ones of its key
        and shape; None where nobody is. From then on the next of them is behind ``entry``."""
        age_s, shape = self._age_s(), entry.shape
        alike_s = [w for each, w in self._waits_s.items() if each.shape == shape]
        if not alike_s:
            return None
        # One more of them, at the pace of those before.
        self._waits_s[entry] = max(alike_s) * (1 + 1 / len(alike_s))
        return max(0.0, self._waits_s[entry] - age_s)

    def _age_s(self) -> float:
        """Seconds since the last look, which is taken again where it is due."""
        now = self._now()
        if now >= self._until:
            places, self._newcomers_s = self._look()
            self._waits_s.clear()
            for entry, place in places.items():
                self._waits_s[entry] = place.wait_s
            took_s = self._now() - now
            self._at, self._until = now, now + (SHARE + 1) * took_s
        return now - self._at
