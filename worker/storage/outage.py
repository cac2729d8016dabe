"""Whether a service answers, as far as the last call knows; whoever asks one that does not is told
at once, and one call at a time tries again."""

import threading
import time

from worker import log
from worker.errors import ObjectsAway

REST_S = 2.0
"""After a failure, before the service is tried again."""
_TRY_S = 10.0  # a call that tries again has so long before the next one does


class Outage:
    """Of one kind of calls; ``what`` they do to which ``service``, for the log."""

    def __init__(self, what: str, service: str = "the store of pictures") -> None:
        self._what = f"{service} cannot {what}"
        self._again = f"{service} can {what} again"
        self._lock = threading.Lock()
        self._next_try_at = 0.0
        self.why = ""
        """Why they fail; "": they do not."""

    def require_turn(self) -> None:
        """Raise ``ObjectsAway`` where the service is away and it is nobody's turn to try."""
        with self._lock:
            now = time.monotonic()
            if self.why and now < self._next_try_at:
                raise ObjectsAway(self.why)
            self._next_try_at = now + _TRY_S

    def failed(self, why: str) -> ObjectsAway:
        """A call has; what to raise for it."""
        with self._lock:
            before, self.why = self.why, why
            self._next_try_at = time.monotonic() + REST_S
        if not before:
            log.event(self._what, why=why)
        return ObjectsAway(why)

    def ended(self) -> None:
        """A call was answered."""
        with self._lock:
            before, self.why = self.why, ""
        if before:
            log.event(self._again)
