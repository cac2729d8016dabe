"""Somebody who is handled here, and may be what kills this worker."""

import threading

from worker.coordination.heartbeat import digest
from worker.coordination.inflight import Handling, InFlight


class Suspect:
    """A request, or a job's item, as whoever looks for what killed a worker sees it.

    ``handling`` is its line in the table of what is being handled; ``clean``: surely no worker has
    died of it. ``strikes`` is how many did, as far as it was asked for.
    """

    def __init__(self, id: str, table: InFlight, *, clean: bool = False) -> None:
        self.id = id
        self.clean = clean
        self.strikes = 0
        self.handling = Handling(table, digest(id))
        self._lock: threading.Lock | None = None

    @property
    def locked(self) -> bool:
        """Whether it keeps other struck requests out."""
        return self._lock is not None

    def lock(self, lock: threading.Lock) -> None:
        """It has acquired ``lock``, for as long as it is handled."""
        self._lock = lock

    def rest(self) -> None:
        """Nothing is handled for it for now: it waits, or its answer has begun."""
        self.handling.pause()
        self._unlock()

    def close(self) -> None:
        """It is answered."""
        self.handling.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
