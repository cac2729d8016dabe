"""Who is suspect of killing workers is refused, or handled while nobody else is who is suspect.

What is known of deaths: ``coordination.poison_requests``. What is being handled stands in
``coordination.inflight``, so that it is known if this worker dies of it.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from worker import log
from worker.coordination.heartbeat import digest
from worker.coordination.poison_requests import PoisonRequests
from worker.coordination.strikes import CLEAN, Record, asked_text
from worker.coordination.suspect import Suspect
from worker.errors import Unavailable
from worker.observability.metrics import Metrics
from worker.types import DrawSpec

ALONE_WAIT_S = 60.0
BRIEF_WAIT_S = 20.0  # with a body whose handler waits for it: see BODY_TIMEOUT_S
STRIKES_TIMEOUT_S = 5.0
_POLL_S = 0.2


@dataclass(frozen=True)
class Quarantine:
    """``apart`` is held for whoever is suspect and being handled or drawn: one at a time."""

    records: PoisonRequests
    metrics: Metrics
    apart: threading.Lock
    require_ready: Callable[[], object]
    """Raises where this worker takes no work: nobody waits here then."""

    async def clear(self, suspect: Suspect, fingerprint: str, asked: DrawSpec | None) -> Record:
        """What is known of the request that ``fingerprint`` stands for; raises ``Refused`` where it
        kills workers. From here on it is known by that. One that is struck has waited for its turn.

        ``asked`` is to be drawn, if anything is."""
        record = await self.look(suspect, fingerprint, asked)
        if record.strikes:
            suspect.handling.pause()  # whoever waits is to blame for nothing
            await self._wait(suspect, record, BRIEF_WAIT_S if asked is None else ALONE_WAIT_S)
            suspect.handling.call(digest(fingerprint), struck=True)
            suspect.handling.resume()
        return record

    async def clear_at_once(self, suspect: Suspect, fingerprint: str, asked: DrawSpec) -> Record:
        """``clear`` for somebody who can come again, and is not handled meanwhile: it raises
        ``Unavailable`` instead of waiting."""
        record = await self.look(suspect, fingerprint, asked)
        if record.alone and not await asyncio.to_thread(self.records.another_is_open):
            raise Unavailable("It ended a worker before and waits until a second one is back.")
        if record.strikes:
            suspect.handling.call(digest(fingerprint), struck=True)
        return record

    async def look(self, suspect: Suspect, fingerprint: str, asked: DrawSpec | None) -> Record:
        """What is known; raises ``Refused`` where it kills workers."""
        record = CLEAN if suspect.clean else await self._record(suspect, fingerprint)
        if not record.strikes:
            suspect.handling.call(digest(fingerprint), struck=suspect.handling.struck)
            return record
        suspect.strikes = record.strikes
        if record.refused:
            self.metrics.strikes.labels("too_slow" if record.too_slow else "refused").inc()
            raise record.refusal(None if asked is None else asked_text(asked))
        self.metrics.strikes.labels("alone").inc()
        return record

    async def _record(self, suspect: Suspect, fingerprint: str) -> Record:
        await self.records.ask_others(fingerprint)
        look = asyncio.to_thread(self.records.arrive, suspect.id, fingerprint)
        try:
            return await asyncio.wait_for(look, STRIKES_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            # A full or stalled disk must not stop the drawing.
            log.failure("strikes cannot be read", error, request_id=suspect.id)
            return CLEAN

    async def _wait(self, suspect: Suspect, record: Record, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        if record.alone:
            await self._until_another_is_open(deadline)
        if not suspect.locked:
            await self._take_apart(deadline)
            suspect.lock(self.apart)

    async def _take_apart(self, deadline: float) -> None:
        """The lock, which the thread that draws holds for a step at most. Polled: nothing wakes
        the event loop, and a struck request may wait for that."""
        while not self.apart.acquire(blocking=False):
            if time.monotonic() > deadline:
                raise Unavailable(
                    "This request ended a worker before and waits until no other such one is "
                    "handled.",
                    retry_after_s=10.0,
                )
            await asyncio.sleep(_POLL_S / 10)

    async def _until_another_is_open(self, deadline: float) -> None:
        """Wait until this request's next victim, if it is one, would not be the last worker."""
        log.event("struck request waits for a second worker")
        while not await asyncio.to_thread(self.records.another_is_open):
            self.require_ready()
            if time.monotonic() > deadline:
                raise Unavailable(
                    "This request ended a worker before and waits until a second one is back.",
                    retry_after_s=10.0,
                )
            await asyncio.sleep(_POLL_S)
