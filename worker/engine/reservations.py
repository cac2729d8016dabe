"""Room that was promised to refused requests: whoever obeys ``Retry-After`` finds a place. Pure.

A promise counts as a waiting request wherever waits are predicted, so nobody else is given its
room. It is known again by key and fingerprint, for a resubmission has another id.
"""

import math
import time
from dataclasses import dataclass

from worker.engine.queue import Entry

GRACE_S = 5.0
"""So late a client may come: clocks, networks and the tries of other workers."""


@dataclass(frozen=True)
class Reservation:
    """``entry`` was refused and told to come at ``due`` (monotonic seconds)."""

    entry: Entry
    due: float

    def is_due(self, now: float) -> bool:
        # Clients sleep in whole seconds of their own clock.
        return now >= self.due - 1.0

    def is_void(self, now: float) -> bool:
        """Whether the client may be expected no longer."""
        return now >= self.due + GRACE_S


class Reservations:
    """At most ``max_bookings`` promises; beyond them, Retry-After is a guess."""

    def __init__(self, max_bookings: int) -> None:
        self._max = max_bookings
        self._all: list[Reservation] = []

    def __len__(self) -> int:
        return len(self._all)

    def find(self, entry: Entry, now: float) -> Reservation | None:
        """The promise that was made to an earlier attempt of ``entry``."""
        if not self._all:
            return None
        self._all = [each for each in self._all if not each.is_void(now)]
        asked = _identity(entry)
        found = [each for each in self._all if _identity(each.entry) == asked]
        return min(found, key=lambda each: each.due, default=None)

    def discard(self, promise: Reservation | None) -> None:
        """``promise``, if it is one, is kept or void."""
        if promise in self._all:
            self._all.remove(promise)

    def due(self, now: float | None = None) -> list[Entry]:
        """Those who were promised room and may come any moment."""
        now = time.monotonic() if now is None else now
        return [each.entry for each in self._all if each.is_due(now) and not each.is_void(now)]

    def add(self, entry: Entry, retry_after_s: float, now: float) -> None:
        """``entry`` is told to come again after ``retry_after_s``."""
        if len(self._all) < self._max:
            self._all.append(Reservation(entry, now + math.ceil(retry_after_s)))

    def entries(self) -> list[Entry]:
        """Everybody who is expected."""
        return [each.entry for each in self._all]


def _identity(entry: Entry) -> tuple[str, str]:
    return entry.request.key, entry.request.fingerprint or entry.request.id
