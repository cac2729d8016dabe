"""The engine: requests go in on the event loop, one thread draws, tickets tell what happens."""

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from worker.coordination.heartbeat import HeartbeatFile
from worker.engine import admission
from worker.engine.admission import Line
from worker.engine.allowance import Allowances
from worker.engine.costs import Costs, Kind
from worker.engine.driver import Driver
from worker.engine.forecast import NOBODY, work_s
from worker.engine.forecast_cache import Ahead, ForecastCache
from worker.engine.heartbeat_writer import IDLE_BEAT_S, HeartbeatWriter
from worker.engine.limits import Limits
from worker.engine.oom_tracker import Verdict
from worker.engine.queue import Entry, Queue, Size, expected_rows
from worker.engine.request import DrawRequest, Queued
from worker.engine.reservations import Reservations
from worker.engine.scheduler import Scheduler
from worker.engine.state import EngineState
from worker.engine.ticket import Finish, Ticket
from worker.errors import (
    DeadlinePassed,
    HandedBack,
    InvalidRequest,
    NotReady,
    Overloaded,
    Refused,
    Unavailable,
    ZimageError,
)
from worker.models.base import DevicePoisoned, Pipeline
from worker.types import DrawSpec

log = logging.getLogger(__name__)

_FORESEEN = 16
"""While more wait or are expected, a newcomer hears of its place with the others, not at once, and
is admitted by how those of its key and shape fare: looking ahead takes some 0.1 ms for each."""
_OWED = 4
"""So many times as many as may wait can be promised room. An overload that goes on for a minute
turns away more than one queue holds, and whoever is beyond this number is told a guess."""

_SPARE_AFTER_S = 20.0
"""Nothing must have been drawn for so long before the thread does what nobody waits for."""

OnFatal = Callable[[BaseException], None]


class Engine:
    """Draws with ``pipeline`` from one thread of its own, in which the pipeline is also closed.

    ``on_fatal`` is called once, on the event loop, when the engine can draw no more (the device
    is poisoned, or the thread died) and every waiter has been failed with Unavailable. ``apart`` is
    held in the calls of ``exclusive`` requests.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        heartbeat: HeartbeatFile,
        limits: Limits,
        costs: Costs | None = None,
        on_fatal: OnFatal | None = None,
        apart: "threading.Lock | None" = None,
    ) -> None:
        self.on_fatal = on_fatal
        self._pipeline = pipeline
        self._limits = limits
        self._costs = costs or Costs(limits.max_batch)
        self._pulse = HeartbeatWriter(heartbeat, limits, compiles=pipeline.info.device != "cpu")
        self._queue = Queue(admission.max_waiting(limits, replay=True))
        self._reservations = Reservations(_OWED * limits.max_queued_requests)
        self._forecasts = ForecastCache(self._look)
        scheduler = Scheduler(self._costs)
        allowances = Allowances(limits, self._costs, stepwise=pipeline.info.stepwise)
        self._driver = Driver(
            pipeline,
            self._pulse,
            self._queue,
            self._costs,
            scheduler,
            allowances,
            apart=apart or threading.Lock(),
        )
        self._lock = self._driver.lock
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._wake = threading.Event()
        self._sequence = itertools.count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rested = asyncio.Event()
        self._watching_rest = False
        self._busy = False
        self._spare: Iterator[object] | None = None
        self._drawn_at = time.monotonic()
        self._waking = False
        self._draining = False
        self._closed = False
        self._broken: str | None = None

    def start(self) -> None:
        """Start the thread, once, from the event loop that will call ``submit``."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def when_idle(self, work: Iterator[object]) -> None:
        """Do ``work`` with the pipeline on the thread that draws, piece by piece, whenever nothing
        was drawn for a while: who comes meanwhile waits for one piece. Before ``start``."""
        self._spare = work

    def learn(self, costs: Costs) -> None:
        """Predict from what ``costs`` has measured."""
        with self._lock:
            self._costs.take(costs)

    def check(self, specs: Sequence[DrawSpec]) -> None:
        """Raise InvalidRequest or Refused where one of ``specs`` can never be drawn here."""
        for spec in specs:
            self._pipeline.check(spec)
        with self._lock:
            self._require_known_to_fit(specs)

    def submit(self, request: DrawRequest, finish: Finish | None = None) -> Ticket:
        """Admit ``request``, on the event loop. Raises a ZimageError where it is not taken:
        Overloaded, HandedBack (draining), NotReady, Refused, InvalidRequest, DeadlinePassed.

        ``finish`` does what its pictures still need before the ticket tells of them."""
        self._loop = asyncio.get_running_loop()
        _require_sense(request)
        self.check(request.specs)
        ticket = Ticket(request, lambda: self._cancel(entry), finish)
        entry = Entry(request, ticket, next(self._sequence), time.monotonic())
        with self._lock:
            self._require_open()
            place = self._admit(entry)
            self._queue.add(entry)
            if place:
                self._driver.tell(entry, place)
        if not self._waking:
            # Once for all who come in one turn of the loop: each time may cost two switches.
            self._waking = True
            self._loop.call_soon(self._wake_up)
        return ticket

    def drain(self, *, finish: bool = False) -> None:
        """Take no more work, and hand back what has not begun or ``finish`` it. From any thread or
        signal handler, so nothing here may wait for a lock."""
        self._draining = True
        if not finish:
            self._soon(self._hand_back)

    def undrain(self) -> None:
        """Take work again."""
        self._draining = False

    async def drained(self) -> None:
        """Return when nothing is queued or running."""
        self._loop = asyncio.get_running_loop()
        self._watching_rest = True
        while not self._resting():
            self._rested.clear()
            await self._rested.wait()

    async def close(self, timeout_s: float = 10.0) -> None:
        """Answer every waiter and end the thread, waiting ``timeout_s`` for a running call."""
        self._closed = True
        with self._lock:
            self._driver.settle_all(lambda: HandedBack("this worker is shutting down"))
        self._wake.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, timeout_s)
        if self._thread.is_alive():
            log.error("the running call did not end within %.0f s", timeout_s)

    def trouble(self) -> str | None:
        """``broken``, ``stuck``, or None: what decides about a request before anything else."""
        if self._broken:
            return "broken"
        return "stuck" if self._pulse.activity.stuck() else None

    def state(self) -> EngineState:
        """What health checks and metrics show."""
        activity = self._pulse.activity
        with self._lock:
            queued = len(self._queue.waiting)
            return EngineState(
                started=self._thread.is_alive(),
                draining=self._draining,
                broken=self._broken,
                stuck=activity.stuck(),
                phase=activity.phase,
                phase_age_s=round(time.monotonic() - activity.since, 3),
                queued=queued,
                running=len(self._queue) - queued,
                batch=activity.rows,
                predicted_wait_s=self._newcomers_wait_s(),
                steps_done=self._driver.totals.steps,
                totals=dataclasses.asdict(self._driver.totals),
                batches=dict(self._driver.batches),
                caption_lookups=self._pipeline.caption_lookups(),
                step_ms=self._costs.step_ms(),
                refused_sizes=tuple(f"{w}x{h}" for w, h in self._driver.oom.too_large()),
            )

    def batch_cap(self, size: Size) -> int:
        """Most rows of ``size`` that share a step."""
        with self._lock:
            return self._costs.batch_cap(size)

    def picture_s(self, size: Size, rows: int, steps: int) -> float:
        """Seconds that a picture of ``rows`` rows takes in a full batch."""
        with self._lock:
            cap = max(rows, self._costs.batch_cap(size))
            return self._costs.drawing_s(size, cap, steps) * rows / cap

    def predict_s(self, kind: Kind, size: Size, rows: int) -> float:
        """Seconds that a call will take."""
        with self._lock:
            return self._costs.predict_s(kind, size, rows)

    def costs(self) -> dict[str, object]:
        """Everything that was measured, as ``Costs.load`` takes it."""
        with self._lock:
            return self._costs.dump()

    # Admission

    def _require_open(self) -> None:
        if self._broken:
            raise NotReady(f"this worker cannot draw: {self._broken}")
        if self._draining or self._closed:
            raise HandedBack("this worker is draining")
        if not self._thread.is_alive():
            raise NotReady("this worker is starting")

    def _require_known_to_fit(self, specs: Sequence[DrawSpec]) -> None:
        for spec in specs:
            size, rows = (spec.width, spec.height), expected_rows(spec)
            closed = self._driver.oom.closed_to((size, rows))
            if closed and closed.verdict is not Verdict.TOO_LARGE:
                left_s = self._driver.oom.left_s(closed)
                message = f"{spec.width}x{spec.height} found no room in this worker a moment ago"
                raise Unavailable(message, retry_after_s=max(1.0, left_s))
            if closed or not self._costs.fits(size, rows):
                message = f"{spec.width}x{spec.height} does not fit this device: ask for less"
                raise Refused(message, param="size", code="out_of_memory")

    def _admit(self, entry: Entry) -> Queued | None:
        """Its place, where that had to be computed; raises Overloaded."""
        now = time.monotonic()
        entry.work_s = work_s(entry, self._costs)
        promise = self._reservations.find(entry, now)
        short = len(self._queue) + len(self._reservations) <= _FORESEEN
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
        place = self._forecast([*self._reservations.entries(), entry])[entry]
        return place, place.wait_s

    def _plenty(self) -> bool:
        """Whether one more has room in whatever order the others are drawn, and those who may
        come any moment. Promised room must not keep everybody out of an idle worker: many of those
        who were refused never come back."""
        others: list[Entry] = [*self._queue, *self._reservations.due()]
        if len(others) * 3 > self._limits.max_queued_requests * 2:
            return False
        return sum(each.work_s for each in others) < self._limits.max_queue_wait_s / 2

    def _lines(self, entry: Entry) -> tuple[Line, Line]:
        """Everybody who is ahead of ``entry``, and those of its key."""
        key = entry.request.key
        waiting, promised = self._queue.waiting, self._reservations.entries()
        everybody = Line(len(waiting), len(promised), self._forecasts.waits_s)
        own = Line(
            sum(each.request.key == key for each in waiting),
            sum(each.request.key == key for each in promised),
            lambda: self._forecasts.waits_s(key),
        )
        return everybody, own

    def _forecast(self, more: Sequence[Entry]) -> dict[Entry, Queued]:
        return self._driver.forecast(more)

    def _look(self) -> Ahead:
        probe = self._probe()
        expected = [] if self._plenty() else self._reservations.entries()
        places = self._forecast([*expected, probe])
        return places, places.pop(probe).wait_s

    def _newcomers_wait_s(self) -> float:
        """What somebody new who came now would wait."""
        if not len(self._queue) and not self._reservations:
            return 0.0
        return self._forecasts.newcomers_wait_s()

    def _probe(self) -> Entry:
        """A request of the model's defaults that came now from somebody new."""
        info = self._pipeline.info
        spec = DrawSpec("", *info.default_size, info.default_steps, 0, info.default_guidance_scale)
        return Entry(DrawRequest("", (spec,), time.time(), key=""), NOBODY, 0)

    # Leaving

    def _cancel(self, entry: Entry) -> None:
        gone = ZimageError("the request was cancelled", code="cancelled")
        with self._lock:
            self._driver.totals.requests_cancelled += self._driver.settle(entry, gone)

    def _hand_back(self) -> None:
        with self._lock:
            if not self._draining:
                return
            for entry in self._queue.waiting:
                if not entry.waiter.keep:
                    back = HandedBack("this worker is draining")
                    self._driver.totals.requests_handed_back += self._driver.settle(entry, back)

    def _wake_up(self) -> None:
        self._waking = False
        self._wake.set()

    # The thread

    def _run(self) -> None:
        try:
            while not self._closed:
                self._wake.clear()
                self._busy = True
                if self._driver.tick():
                    self._drawn_at = time.monotonic()
                elif not self._use_spare_time():
                    self._rest()
            self._pipeline.close()
        except BaseException as error:
            self._die(error)
        finally:
            self._busy = False
            self._soon(self._rested.set)

    def _use_spare_time(self) -> bool:
        """Whether a piece of what nobody waits for was done."""
        idle_s = time.monotonic() - self._drawn_at
        if self._spare is None or self._draining or idle_s < _SPARE_AFTER_S:
            return False
        self._pulse.spare()
        try:
            if next(self._spare, None) is not None:
                return True
        except DevicePoisoned:
            raise
        except Exception as error:
            log.warning("what was to be done in spare time is left", exc_info=error)
        self._spare = None
        return False

    def _rest(self) -> None:
        self._pulse.idle()
        self._busy = False
        if self._watching_rest:  # waking the event loop for nobody would slow everybody
            self._soon(self._rested.set)
        self._wake.wait(IDLE_BEAT_S)

    def _die(self, error: BaseException) -> None:
        # The heartbeat stays as it is: it tells the guard who was inside the fatal call.
        log.critical("the engine ends", exc_info=error)
        with self._lock:
            self._broken = f"{type(error).__name__}: {error}"
            self._driver.settle_all(lambda: Unavailable("this worker has failed"))
        self._soon(lambda: self.on_fatal and self.on_fatal(error))

    def _resting(self) -> bool:
        with self._lock:
            return not len(self._queue) and not (self._busy and self._thread.is_alive())

    def _soon(self, callback: Callable[[], object]) -> None:
        if self._loop:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(callback)


def _require_sense(request: DrawRequest) -> None:
    if not request.specs:
        raise InvalidRequest("ask for at least one picture", param="prompt")
    if request.deadline is not None and request.deadline <= time.time():
        raise DeadlinePassed("the request's own time limit has passed")
