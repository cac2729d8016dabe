"""What the one thread does: a step boundary, then a step.

Everything that the event loop shares with it (queue, costs, turns, room, counters) is
touched under ``lock`` only, and ``lock`` is never held during a call into the pipeline.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from worker.coordination.heartbeat import Phase
from worker.engine.allowance import KINDS, Allowances
from worker.engine.announcements import Announcements
from worker.engine.batch_bisection import Failure, run
from worker.engine.costs import Costs, Kind
from worker.engine.forecast import NOBODY, remaining_s
from worker.engine.heartbeat_writer import IDLE_BEAT_S, HeartbeatWriter
from worker.engine.oom_tracker import DOUBT_S, OomTracker, Verdict
from worker.engine.queue import Entry, Picture, Queue, any_suspect, rows_of, share, unread
from worker.engine.request import Drawn, DrawRequest, Partial, Stepped
from worker.engine.scheduler import Scheduler
from worker.engine.state import Counters
from worker.errors import DeadlinePassed, DrawingFailed, WorkerFailed, ZimageError
from worker.models.base import DevicePoisoned, Pipeline, Sample
from worker.types import DrawSpec, Pixels

log = logging.getLogger(__name__)

MAX_LOST_MEMORY = 3
MAX_FAILED = 3
"""After so many failures in a row the worker tries what it drew last: whose fault is it?"""
Call = Callable[[Sequence[Picture]], None]


@dataclass
class Driver:
    """``tick`` from one thread; everything else under ``lock``."""

    pipeline: Pipeline
    heartbeat_writer: HeartbeatWriter
    queue: Queue
    costs: Costs
    scheduler: Scheduler
    allowances: Allowances
    apart: threading.Lock = field(default_factory=threading.Lock)
    lock: threading.Lock = field(default_factory=threading.Lock)
    totals: Counters = field(default_factory=Counters)
    batches: Counter[int] = field(default_factory=Counter)  # steps by the pictures in them
    oom: OomTracker = field(default_factory=OomTracker)
    max_lost_memory: int = MAX_LOST_MEMORY
    max_failed: int = MAX_FAILED
    _lost_memory: int = 0  # times in a row that a shape drawn before did not fit
    _failed_in_a_row: int = 0
    _drawn: DrawSpec | None = None  # the last picture that was drawn
    _trial: Entry | None = None  # that picture again
    _fits: int | None = None  # rows, where the running call had no room for more
    _left: list[Entry] = field(default_factory=list)  # answered; their samples are still held

    def __post_init__(self) -> None:
        stepwise = self.pipeline.info.stepwise
        self.announcements = Announcements(self.queue, self.scheduler, stepwise=stepwise)

    def tick(self) -> bool:
        """One step boundary and one step; False when there is nothing to draw."""
        began = time.monotonic()
        lead, newcomers = self._next()
        if lead is None:
            return False
        while lead and newcomers:
            self._begin_some(newcomers)
            # Look again before the step: somebody may have come who goes first.
            lead, newcomers = self._next()
        if lead and lead.sample and not lead.entry.over:
            self._advance(lead)
        self.totals.busy_s += time.monotonic() - began
        return True

    def _begin_some(self, newcomers: Sequence[Picture]) -> None:
        """One picture is encoded, or all are started."""
        if images := unread(newcomers):
            self._call(Phase.ENCODE, images[:1], self._encode_image, "image")
        else:
            self._call(Phase.ENCODE, newcomers, self._start)

    def _next(self) -> tuple[Picture | None, list[Picture]]:
        """Who leads the next step, and who must be started for it."""
        with self.lock:
            self._tidy()
            lead = self.scheduler.leader(self.queue)
            newcomers = self.scheduler.newcomers(lead, self.queue) if lead else []
            self.announcements.announce()
        return lead, newcomers

    def settle(self, entry: Entry, error: ZimageError | None = None) -> bool:
        """``entry`` is answered and leaves; False if it had been already. Under ``lock``."""
        if entry.over:
            return False
        entry.over = True
        self._trial = None if entry is self._trial else self._trial
        self.queue.remove(entry)
        self._left.append(entry)
        self.announcements.forget(entry)
        if error:
            entry.waiter.fail(error)
        # A ticket knows its entry. If that knew the ticket for ever, its pictures would wait for
        # the garbage collector, which comes once in thousands of requests.
        entry.waiter = NOBODY
        return True

    def settle_all(self, error: Callable[[], ZimageError]) -> None:
        """Answer everybody with an error. Under ``lock``."""
        for entry in list(self.queue):
            self.settle(entry, error())

    def _tidy(self) -> None:
        self._expire()
        for entry in self._left:
            for picture in entry.pictures:
                picture.sample = None
                if picture.spec.source is not None:
                    picture.spec.source.release()
            entry.pictures.clear()  # they know it: only the garbage collector would end them
        self._left.clear()

    def _expire(self) -> None:
        now = time.time()
        for entry in list(self.queue):
            deadline = entry.request.deadline
            if deadline is not None and deadline <= now:
                self.totals.requests_failed += 1
                self.settle(entry, DeadlinePassed("the request's own time limit has passed"))

    def _advance(self, lead: Picture) -> None:
        with self.lock:
            batch = self.scheduler.batch(lead, self.queue)
            for picture in batch:
                picture.entry.begun = True
        before = [picture.steps_done for picture in batch]
        self._call(Phase.STEP, batch, self._step)
        if self.pipeline.info.stepwise:
            pairs = zip(batch, before, strict=True)
            self._tell_step([picture for picture, n in pairs if picture.steps_done > n])
        drawn = [picture for picture in batch if picture.sample and picture.sample.drawn]
        self._call(Phase.DECODE, drawn, self._finish)
        for picture in drawn:
            picture.sample = None

    # Calls into the pipeline

    def _call(
        self, phase: Phase, pictures: Sequence[Picture], call: Call, kind: Kind | None = None
    ) -> None:
        kind = kind or KINDS[phase]
        self._fits = None

        def attempt(part: Sequence[Picture]) -> Failure | None:
            return self._attempt(phase, part, call, kind)

        run(pictures, attempt, self._alive, self._failed)
        if self._fits:
            with self.lock:
                self.costs.shrink(pictures[0].size, self._fits)

    def _attempt(
        self, phase: Phase, part: Sequence[Picture], call: Call, kind: Kind
    ) -> Failure | None:
        if not any_suspect(part):
            return self._attempt_now(phase, part, call, kind)
        with self._apart():
            return self._attempt_now(phase, part, call, kind)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Of what is suspect, one at a time is at work in this process: whoever looks into its
        death must know which it was."""
        held = self.apart.acquire(blocking=False)
        while not held:
            self.heartbeat_writer.idle()
            held = self.apart.acquire(timeout=IDLE_BEAT_S)
        try:
            yield
        finally:
            self.apart.release()

    def _attempt_now(
        self, phase: Phase, part: Sequence[Picture], call: Call, kind: Kind
    ) -> Failure | None:
        began, rows = time.monotonic(), 1 if kind == "image" else rows_of(part)
        shape = self._begin(phase, part, rows, began, kind)
        try:
            call(part)
        except DevicePoisoned:
            raise
        except Exception as error:
            ids = ", ".join(picture.entry.request.id for picture in part)
            log.warning("%s failed for %s", phase.name.lower(), ids, exc_info=True)
            return Failure.of(error)
        finally:
            self.announcements.running = None
        seconds = time.monotonic() - began
        self.totals.device_s += seconds
        typical = self.heartbeat_writer.learn(shape)
        self._measure(phase, part, rows, seconds, kind, typical=typical)
        return None

    def _begin(
        self, phase: Phase, part: Sequence[Picture], rows: int, began: float, kind: Kind
    ) -> Hashable:
        with self.lock:
            allowance_s = self.allowances.allowance_s(phase, part, kind)
            seconds = self.costs.call_s(kind, part)
            if phase is Phase.STEP and not self.pipeline.info.stepwise:
                seconds *= part[0].spec.parameters.drawn_steps
            self.announcements.running = kind, part, began + seconds
        return self.heartbeat_writer.enter(phase, part, allowance_s, kind)

    def _encode_image(self, part: Sequence[Picture]) -> None:
        for picture in part:
            self.pipeline.encode_image(picture.spec)

    def _start(self, part: Sequence[Picture]) -> None:
        began = time.monotonic()
        samples = self.pipeline.start([picture.spec for picture in part])
        _require_as_many(samples, part)
        with self.lock:
            for picture, sample in zip(part, samples, strict=True):
                self.announcements.learn(picture.entry, began)
                picture.sample, picture.started_at = sample, began

    def _step(self, part: Sequence[Picture]) -> None:
        before = [picture.steps_done for picture in part]
        self.pipeline.step(_samples(part), lambda done: self._inner_step(part, done))
        if not self._alive(part):
            return
        if any(picture.steps_done <= n for picture, n in zip(part, before, strict=True)):
            raise RuntimeError("the pipeline reported a step but did not advance its samples")
        for picture in part:
            picture.batch_size = max(picture.batch_size, len(part))

    def _finish(self, part: Sequence[Picture]) -> None:
        began = time.monotonic()
        pixels = self.pipeline.finish(_samples(part))
        _require_as_many(pixels, part)
        now = time.monotonic()
        with self.lock:
            share(part, now - began)  # the call is as good as over, and they hear of it now
            for picture, each in zip(part, pixels, strict=True):
                picture.done = True
                self._tell_drawn(picture, each, now)

    def _inner_step(self, part: Sequence[Picture], done: int) -> bool:
        """After each step of a pipeline that draws in one call; False: nobody waits for it."""
        if not self.pipeline.info.stepwise:
            with self.lock:
                self._expire()
                self.announcements.announce()
            self._tell_step(part, done)
            self._go_on(Phase.STEP, part)
        return bool(self._alive(part))

    def _alive(self, pictures: Sequence[Picture]) -> list[Picture]:
        return [picture for picture in pictures if not picture.entry.over]

    # What became of them

    def _failed(self, part: Sequence[Picture], failure: Failure) -> None:
        with self.lock:
            self.totals.out_of_memory += failure.memory
            if len(part) > 1:
                self._fits = rows_of(part) // 2 if failure.memory else self._fits
                return
            if failure.memory:
                self._fits = None  # it was this picture, not their number
                self._no_room(part[0])
            elif isinstance(failure.error, DrawingFailed):
                self._doubt_itself(part[0].entry)
            self.totals.requests_failed += self.settle(part[0].entry, failure.error)

    def _doubt_itself(self, failed: Entry) -> None:
        # A process in which a library has broken fails everything, quickly, and so attracts all.
        if failed is self._trial:
            raise DevicePoisoned("what was drawn before fails now, as others did")
        self._failed_in_a_row += 1
        if self._failed_in_a_row < self.max_failed or self._trial or not self._drawn:
            return
        trial = DrawRequest("trial", (self._drawn,), time.time(), key="", watched=False)
        self._trial = Entry(trial, NOBODY, 0, time.monotonic())
        self.queue.add(self._trial, beyond=True)

    def _no_room(self, picture: Picture) -> None:
        verdict = self.oom.failed((picture.size, picture.rows))
        if verdict is Verdict.TOO_LARGE:
            return
        # Perhaps not the request's fault: another worker may draw it.
        self.totals.requests_failed += self.settle(
            picture.entry, WorkerFailed("this worker has run out of memory", retry_after_s=DOUBT_S)
        )
        if verdict is Verdict.DOUBTED:
            return
        # The memory has gone elsewhere, which a new process mends.
        self._lost_memory += 1
        if self._lost_memory >= self.max_lost_memory:
            raise DevicePoisoned("out of memory again and again for a size that was drawn before")

    def _go_on(self, phase: Phase, part: Sequence[Picture]) -> None:
        """Within a call that has begun: the next part of it may take as long as one of its own."""
        with self.lock:
            allowance_s = self.allowances.allowance_s(phase, part)
        self.heartbeat_writer.enter(phase, part, allowance_s)

    def _measure(
        self,
        phase: Phase,
        part: Sequence[Picture],
        rows: int,
        seconds: float,
        kind: Kind,
        *,
        typical: bool,
    ) -> None:
        with self.lock:
            self.scheduler.charge(part, seconds)
            share(part, seconds)
            if phase is Phase.STEP:
                self.totals.steps += 1
                self.batches[len(part)] += 1
                seconds /= 1 if self.pipeline.info.stepwise else part[0].spec.parameters.drawn_steps
            if typical and (phase is not Phase.STEP or self._alive(part)):
                self.costs.record_call(kind, part, rows, seconds)
                if kind != "image":
                    self.allowances.learn(phase, part, seconds)

    # What the waiters hear

    def _tell_step(self, part: Sequence[Picture], inner: int | None = None) -> None:
        for picture in self._alive(part):
            assert picture.sample
            steps, done = picture.sample.steps, inner or picture.sample.step_index
            if picture.entry.request.watched or picture.entry.request.followed:
                with self.lock:
                    left_s = remaining_s(picture, rows_of(part), self.costs)
                picture.entry.waiter.post(Stepped(picture.image_index, done, steps, left_s))
            self._preview(picture, done, steps)

    def _preview(self, picture: Picture, done: int, steps: int) -> None:
        wanted = min(picture.entry.request.partial_images, steps - 1)
        if done >= steps or done * (wanted + 1) < steps * (picture.previews + 1):
            return
        if picture.previews >= wanted or picture.sample is None:
            return
        try:
            apart = self.pipeline.info.stepwise and any_suspect([picture])
            with self._apart() if apart else nullcontext():
                # A decoding of its own: with its own time, and nobody else is to blame for it.
                self._go_on(Phase.DECODE, [picture])
                pixels = self.pipeline.preview(picture.sample)
        except DevicePoisoned:
            raise
        except Exception:  # a preview is a courtesy: the picture goes on
            log.warning("no preview for %s", picture.entry.request.id, exc_info=True)
            pixels = None
        if pixels is not None:
            picture.entry.waiter.post(Partial(picture.image_index, picture.previews, pixels))
        picture.previews += 1

    def _tell_drawn(self, picture: Picture, pixels: Pixels, now: float) -> None:
        entry = picture.entry
        if entry.over:
            return
        queue_ms = (picture.started_at - entry.submitted_at) * 1000
        inference_ms = (now - picture.started_at) * 1000
        event = Drawn(
            picture.image_index,
            picture.spec,
            pixels,
            queue_ms,
            inference_ms,
            picture.batch_size,
            picture.device_s,
        )
        self.oom.drew((picture.size, picture.rows))
        self._lost_memory = self._failed_in_a_row = 0
        self._drawn = picture.spec.without_source()
        self.totals.pictures_drawn += 1
        entry.waiter.post(event)
        if not entry.undone:
            self.totals.requests_done += self.settle(entry)


def _samples(pictures: Sequence[Picture]) -> list[Sample]:
    return [picture.sample for picture in pictures if picture.sample]


def _require_as_many(results: Sequence[object], pictures: Sequence[Picture]) -> None:
    if len(results) != len(pictures):
        raise RuntimeError(f"the pipeline gave {len(results)} results for {len(pictures)} pictures")
