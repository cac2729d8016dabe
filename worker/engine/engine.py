"""The engine: requests go in on the event loop, one thread draws, tickets tell what happens."""

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from math import inf
from queue import Empty, SimpleQueue

from worker.coordination.heartbeat import HeartbeatFile
from worker.engine import admission
from worker.engine.admission_control import AdmissionControl
from worker.engine.allowance import Allowances
from worker.engine.costs import Costs, Kind
from worker.engine.driver import Driver
from worker.engine.heartbeat_writer import IDLE_BEAT_S, HeartbeatWriter
from worker.engine.limits import Limits
from worker.engine.queue import Entry, Queue, Size
from worker.engine.request import DrawRequest
from worker.engine.scheduler import Scheduler
from worker.engine.state import Backlog, EngineState
from worker.engine.ticket import Finish, Ticket
from worker.errors import (
    DeadlinePassed,
    HandedBack,
    InvalidRequest,
    NotReady,
    WorkerFailed,
    ZimageError,
)
from worker.models.base import DevicePoisoned, Pipeline
from worker.types import DrawSpec

log = logging.getLogger(__name__)

_SPARE_AFTER_S = 20.0
"""Nothing must have been drawn for so long before the thread does what nobody waits for."""

OnFatal = Callable[[BaseException], None]


class Engine:
    """Draws with ``pipeline`` from one thread of its own, in which the pipeline is also closed.

    ``on_fatal`` is called once, on the event loop, when the engine can draw no more (the device
    is poisoned, or the thread died) and every waiter has got WorkerFailed. ``apart`` is
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
        self._admission = AdmissionControl(self._driver, limits)
        self._lock = self._driver.lock
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        # A thread is woken by it for a fraction of what threading.Event takes.
        self._news: SimpleQueue[None] = SimpleQueue()
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
            self._admission.require_known_to_fit(specs)

    def submit(self, request: DrawRequest, finish: Finish | None = None) -> Ticket:
        """Admit ``request``, on the event loop. Raises a ZimageError where it is not taken:
        Overloaded, HandedBack (draining), NotReady, Refused, InvalidRequest, DeadlinePassed.

        ``finish`` does what its pictures still need before the ticket tells of them."""
        self._loop = asyncio.get_running_loop()
        _require_sense(request)
        for spec in request.specs:
            self._pipeline.check(spec)
        ticket = Ticket(request, lambda: self._cancel(entry), finish)
        entry = Entry(request, ticket, next(self._sequence), time.monotonic())
        with self._lock:
            self._admission.require_known_to_fit(request.specs)
            self._require_open()
            place = self._admission.admit(entry)
            self._queue.add(entry)
            if place:
                self._driver.announcements.tell(entry, place)
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
        self._news.put(None)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, timeout_s)
        if self._thread.is_alive():
            log.error("the running call did not end within %.0f s", timeout_s)

    def trouble(self) -> str | None:
        """``broken``, ``stuck``, or None: what decides about a request before anything else."""
        if self._broken:
            return "broken"
        return "stuck" if self._pulse.activity.stuck() else None

    def backlog(self) -> Backlog:
        """What the guard asks for five times a second: of ``state`` what is cheap."""
        with self._lock:
            queued = len(self._queue.waiting)
            running = len(self._queue) - queued
            return Backlog(queued, running, self._admission.newcomers_wait_s())

    def state(self) -> EngineState:
        """What people and metrics are shown."""
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
                predicted_wait_s=self._admission.newcomers_wait_s(),
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
            return self._costs.picture_s(size, rows, steps)

    def predict_s(self, kind: Kind, size: Size, rows: int) -> float:
        """Seconds that a call will take."""
        with self._lock:
            return self._costs.predict_s(kind, size, rows)

    @property
    def max_batch(self) -> int:
        """Most rows of a step, as configured."""
        return self._limits.max_batch

    @property
    def memory_limit(self) -> int | None:
        """Bytes that the weights and calls may use together."""
        return self._costs.memory_limit

    def costs(self) -> dict[str, object]:
        """Everything that was measured, as ``Costs.load`` takes it."""
        with self._lock:
            return self._costs.dump()

    def _require_open(self) -> None:
        if self._broken:
            raise NotReady(f"this worker cannot draw: {self._broken}")
        if self._draining or self._closed:
            raise HandedBack("this worker is draining")
        if not self._thread.is_alive():
            raise NotReady("this worker is starting")

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
        self._news.put(None)

    # The thread

    def _run(self) -> None:
        try:
            while not self._closed:
                while not self._news.empty():
                    self._news.get_nowait()
                self._busy = True
                if self._driver.tick():
                    self._drawn_at = time.monotonic()
                elif not self._use_spare_time():
                    self._rest()
            self._pulse.idle(inf)  # from here on the event loop has what is left to do
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
        with contextlib.suppress(Empty):
            self._news.get(timeout=IDLE_BEAT_S)

    def _die(self, error: BaseException) -> None:
        # The heartbeat stays as it is: it tells the guard who was inside the fatal call.
        log.critical("the engine ends", exc_info=error)
        with self._lock:
            self._broken = f"{type(error).__name__}: {error}"
            self._driver.settle_all(lambda: WorkerFailed("this worker has failed"))
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
