"""Who is admitted, and what newcomers are told of their wait."""

import time
from collections.abc import Sequence

from worker.engine import admission
from worker.engine.admission import Line
from worker.engine.driver import Driver
from worker.engine.forecast import NOBODY, work_s
from worker.engine.forecast_cache import Ahead, ForecastCache
from worker.engine.limits import Limits
from worker.engine.oom_tracker import Verdict
from worker.engine.queue import Entry, expected_rows
from worker.engine.request import DrawRequest, Queued
from worker.engine.reservations import Reservations
from worker.errors import Overloaded, Refused, Unavailable
from worker.types import DrawSpec, Parameters

_FORESEEN = 16
"""While more wait or are expected, a newcomer hears of its place with the others, not at once, and
is admitted by how those of its key and shape fare: looking ahead takes some 0.1 ms for each."""
_OWED = 4
"""So many times as many as may wait can be promised room. An overload that goes on for a minute
turns away more than one queue holds, and whoever is beyond this number is told a guess."""


class AdmissionControl:
    """Of what ``driver`` draws. Everything under its lock."""

    def __init__(self, driver: Driver, limits: Limits) -> None:
        self._driver = driver
        self._limits = limits
        self._reservations = Reservations(_OWED * limits.max_queued_requests)
        self._forecasts = ForecastCache(self._look)

    def require_known_to_fit(self, specs: Sequence[DrawSpec]) -> None:
        """Raise Refused or Unavailable where one of ``specs`` did not fit lately."""
        for spec in specs:
            size, rows = spec.parameters.size, expected_rows(spec.parameters)
            closed = self._driver.oom.closed_to((size, rows))
            if closed and closed.verdict is not Verdict.TOO_LARGE:
                left_s = self._driver.oom.left_s(closed)
                message = f"{spec.parameters.size_text} found no room in this worker a moment ago"
                raise Unavailable(message, retry_after_s=max(1.0, left_s))
            if closed or not self._driver.costs.fits(size, rows):
                message = f"{spec.parameters.size_text} does not fit this device: ask for less"
                raise Refused(message, param="size", code="out_of_memory")

    def admit(self, entry: Entry) -> Queued | None:
        """The place of ``entry``, where that had to be computed. Raises Overloaded where there is
        none; the caller adds it otherwise."""
        now = time.monotonic()
        entry.work_s = work_s(entry, self._driver.costs)
        promise = self._reservations.find(entry, now)
        short = len(self._driver.queue) + len(self._reservations) <= _FORESEEN
        if (promise or not (entry.request.watched and short)) and self._plenty():
            self._reservations.discard(promise)
            return None
        if promise and not promise.is_due(now):
            # Told before, and no news: answering again must cost next to nothing.
            raise Overloaded("come again when you were told to", retry_after_s=promise.due - now)
        replay = admission.is_replay(time.time() - entry.request.arrived_at)
        self._reservations.discard(promise)
        entry.since = promise.entry.since if promise else entry.since
        try:
            line, own = self._lines(entry)
            admission.require_place(self._limits, line, own, replay=replay, promised=bool(promise))
            if promise:
                return None  # its wait was computed when it was promised room
            place, wait_s = self._foresee(entry, short=short)
            admission.require_time(self._limits, wait_s, patient=replay)
        except Overloaded as refusal:
            self._reservations.add(entry, refusal.retry_after_s, now)
            raise
        return place

    def _foresee(self, entry: Entry, *, short: bool) -> tuple[Queued | None, float]:
        """The place of ``entry`` where that is cheap or cannot be told otherwise, and its wait."""
        wait_s = None if short else self._forecasts.behind_s(entry)
        if wait_s is not None:
            return None, wait_s
        place = self._driver.announcements.forecast([*self._reservations.entries(), entry])[entry]
        return place, place.wait_s

    def _plenty(self) -> bool:
        """Whether one more has room in whatever order the others are drawn, and those who may
        come any moment. Promised room must not keep everybody out of an idle worker: many of those
        who were refused never come back."""
        others = list(self._driver.queue)
        if self._reservations:
            others += self._reservations.due()
        if len(others) * 3 > self._limits.max_queued_requests * 2:
            return False
        return sum(each.work_s for each in others) < self._limits.max_queue_wait_s / 2

    def _lines(self, entry: Entry) -> tuple[Line, Line]:
        """Everybody who is ahead of ``entry``, and those of its key."""
        key = entry.request.key
        waiting, promised = self._driver.queue.waiting, self._reservations.entries()
        everybody = Line(len(waiting), len(promised), self._forecasts.waits_s)
        own = Line(
            sum(each.request.key == key for each in waiting),
            sum(each.request.key == key for each in promised),
            lambda: self._forecasts.waits_s(key),
        )
        return everybody, own

    def _look(self) -> Ahead:
        probe = self._probe()
        expected = [] if self._plenty() else self._reservations.entries()
        places = self._driver.announcements.forecast([*expected, probe])
        return places, places.pop(probe).wait_s

    def newcomers_wait_s(self) -> float:
        """What somebody new who came now would wait: until it is drawn or, where the queue is full,
        at least until it has room for one more."""
        if not len(self._driver.queue) and not self._reservations:
            return 0.0
        wait_s, waiting = self._forecasts.newcomers_wait_s(), len(self._driver.queue.waiting)
        if waiting < admission.max_waiting(self._limits, replay=False):
            return wait_s
        everybody = Line(waiting, len(self._reservations), self._forecasts.waits_s)
        return max(wait_s, everybody.room_in_s())

    def _probe(self) -> Entry:
        """A request of the model's defaults that came now from somebody new."""
        info = self._driver.pipeline.info
        how = Parameters(*info.default_size, info.default_steps, info.default_guidance_scale)
        spec = DrawSpec("", 0, how)
        return Entry(DrawRequest("", (spec,), time.time(), key=""), NOBODY, 0)
