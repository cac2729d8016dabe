"""What those who wait are told: their place, and how long it will take."""

import time
from collections.abc import Sequence
from dataclasses import replace

from worker.engine.costs import Kind
from worker.engine.forecast import Call, forecast
from worker.engine.forecast_bias import ForecastBias
from worker.engine.queue import Entry, Picture, Queue
from worker.engine.request import Queued
from worker.engine.scheduler import Scheduler

INTERVAL_S = 0.25
_FORECAST_SHARE = 200  # a forecast every so many times what one takes, at least


class Announcements:
    """Everything under the driver's lock. ``stepwise``: as its pipeline is."""

    def __init__(self, queue: Queue, scheduler: Scheduler, *, stepwise: bool) -> None:
        self.running: tuple[Kind, Sequence[Picture], float] | None = None
        """The call that runs: its kind, in it, should end at."""
        self.bias = ForecastBias()
        self.interval_s = INTERVAL_S
        self._queue = queue
        self._scheduler = scheduler
        self._stepwise = stepwise
        self._announced: dict[Entry, Queued] = {}
        self._at = 0.0

    def forecast(self, more: Sequence[Entry] = ()) -> dict[Entry, Queued]:
        """Places of everybody who has not begun, and of ``more`` if they came now."""
        running = None
        if self.running:
            kind, pictures, end = self.running
            running = Call(kind, pictures, max(0.0, end - time.monotonic()))
        return forecast([*self._queue, *more], self._scheduler, running, stepwise=self._stepwise)

    def tell(self, entry: Entry, place: Queued) -> None:
        """Let the waiter of ``entry`` know where it stands, as forecasts came true lately."""
        entry.foreseen = entry.foreseen or (time.monotonic(), place.wait_s)
        place = replace(place, wait_s=round(place.wait_s * self.bias.factor, 1))
        if self._announced.get(entry) != place:
            self._announced[entry] = place
            entry.waiter.post(place)

    def forget(self, entry: Entry) -> None:
        """``entry`` is answered."""
        self._announced.pop(entry, None)

    def learn(self, entry: Entry, began: float) -> None:
        """How well it was foreseen when ``entry`` begins."""
        if entry.foreseen and not any(picture.started_at for picture in entry.pictures):
            at, wait_s = entry.foreseen
            self.bias.learn(wait_s, max(0.0, began - at))

    def announce(self) -> None:
        """Tell those who wait what has changed, at most four times a second."""
        now = time.monotonic()
        if now - self._at < self.interval_s:
            return
        self._at = now
        if not any(entry.request.watched for entry in self._queue.waiting):
            return
        for entry, place in self.forecast().items():
            self.tell(entry, place)
        # Computed on the thread that draws: at most half a hundredth of its time.
        if self.interval_s:
            spent_s = time.monotonic() - now
            self._at += max(0.0, _FORECAST_SHARE * spent_s - self.interval_s)
