"""When it will be whose turn: the scheduler itself, run ahead on copies. Pure."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from math import ceil

from worker.engine.costs import Costs, Kind
from worker.engine.queue import Entry, Picture, Queue, Size, unread
from worker.engine.request import Event, Queued
from worker.engine.scheduler import Scheduler
from worker.errors import ZimageError
from worker.models.base import Sample

_MAX_LOOKS = 10_000
"""Rounds times entries that are worth computing, for the driver waits meanwhile: about 50 ms."""


@dataclass(frozen=True)
class Call:
    """A call into the pipeline that is under way and should take ``left_s`` more."""

    kind: Kind
    pictures: Sequence[Picture]
    left_s: float


def forecast(
    entries: Sequence[Entry],
    scheduler: Scheduler,
    running: Call | None = None,
    *,
    stepwise: bool = True,
) -> dict[Entry, Queued]:
    """Position (requests that begin before it) and wait of each entry that has not begun.

    ``stepwise`` False: the pipeline draws in one call, which nobody can join.
    """
    ahead = _Ahead(entries, scheduler, running, stepwise)
    ahead.run()
    order = sorted(ahead.starts.items(), key=lambda start: start[1])
    return {
        entry: Queued(k, round(at, 1), _picture_s(entry, scheduler.costs))
        for k, (entry, at) in enumerate(order)
    }


def _picture_s(entry: Entry, costs: Costs) -> float:
    return round(work_s(entry, costs) / max(1, len(entry.undone)), 2)


def remaining_s(picture: Picture, rows: int, costs: Costs) -> float:
    """Seconds until ``picture`` is drawn and decoded if it goes on in steps of ``rows`` rows."""
    step_s = costs.predict_s("step", picture.size, rows)
    return round(picture.steps_left * step_s + costs.predict_s("decode", picture.size, 1), 2)


def work_s(entry: Entry, costs: Costs) -> float:
    """Seconds that are left of ``entry`` if its pictures are drawn one by one."""
    images_s = (costs.predict_s("image", each.size, 1) for each in unread(entry.undone))
    return sum(_alone_s(picture, costs) for picture in entry.undone) + sum(images_s)


def _alone_s(picture: Picture, costs: Costs) -> float:
    encode_s = 0.0 if picture.sample else costs.predict_s("encode", picture.size, 1)
    return encode_s + remaining_s(picture, picture.rows, costs)


@dataclass
class _Ahead:
    """The queue from now on, as if nobody came or left."""

    entries: Sequence[Entry]
    scheduler: Scheduler
    running: Call | None
    stepwise: bool
    starts: dict[Entry, float] = field(default_factory=dict)  # of those that have not begun
    _at: float = 0.0
    _originals: dict[Entry, Entry] = field(default_factory=dict)
    _groups: dict[Size, Hashable] = field(default_factory=dict)
    _read: set[int] = field(default_factory=set)  # pictures that are encoded meanwhile

    def __post_init__(self) -> None:
        self.scheduler = self.scheduler.copy()
        self._costs = self.scheduler.costs

    def run(self) -> None:
        copies = {picture: copy for entry in self.entries for picture, copy in self._copy(entry)}
        self._queue = Queue.of(self._originals)
        self._waiting = sum(not entry.begun for entry in self.entries)
        if self.running:
            self._finish_running(self.running, copies)
        for _ in range(_MAX_LOOKS // (len(self.entries) + 1) + 1):
            if len(self.starts) >= self._waiting or not self._round():
                break
        self._guess_the_rest()
        for copy in self._originals:
            copy.pictures.clear()  # they know it, and none of them waits for the garbage collector

    def _guess_the_rest(self) -> None:
        """Beyond what is worth computing: one after the other."""
        for copy in self._queue:
            entry = self._originals[copy]
            if not entry.begun and entry not in self.starts:
                self.starts[entry] = self._at
                self._at += work_s(copy, self._costs)

    def _copy(self, entry: Entry) -> list[tuple[Picture, Picture]]:
        copy = Entry(entry.request, NOBODY, entry.sequence, since=entry.since, begun=entry.begun)
        self._originals[copy] = entry
        pairs = list(zip(entry.pictures, copy.pictures, strict=True))
        for picture, twin in pairs:
            twin.done = picture.done
            if sample := picture.sample:
                self._groups.setdefault(picture.size, sample.group)
                twin.sample = Sample(
                    picture.spec, sample.group, sample.steps, sample.rows, sample.step_index
                )
        return pairs

    def _finish_running(self, call: Call, copies: dict[Picture, Picture]) -> None:
        pictures = [copies[p] for p in call.pictures if p in copies and not copies[p].done]
        self._at = call.left_s
        if call.kind == "image":
            self._read |= {id(picture.spec.source) for picture in pictures}
        if call.kind == "encode":
            self._started(pictures, 0.0)
        if call.kind == "step":
            steps = 1 if self.stepwise else max((p.steps_left for p in pictures), default=1)
            self._stepped(pictures, steps)
        if call.kind == "decode":
            self._decoded(pictures)

    def _round(self) -> bool:
        lead = self.scheduler.leader(self._queue)
        if lead is None:
            return False
        if newcomers := self.scheduler.newcomers(lead, self._queue):
            at = self._at
            seconds = self._encode_images(newcomers) + self._spend("encode", newcomers)
            self._at = at
            self._started(newcomers, seconds)
            return True  # the driver looks again too
        batch = self.scheduler.batch(lead, self._queue)
        for picture in batch:
            self._begins(picture, self._at)
        steps = self._steps(batch)
        self._spend("step", batch, steps)
        self._stepped(batch, steps)
        return True

    def _steps(self, batch: list[Picture]) -> int:
        """How many steps ``batch`` does before anything changes."""
        left = [picture.steps_left for picture in batch]
        if not self.stepwise:
            return max(left)
        step_s = self._costs.call_s("step", batch)
        steady_s = self.scheduler.steady_s(batch)
        return min(left) if steady_s > min(left) * step_s else max(1, ceil(steady_s / step_s))

    def _spend(self, kind: Kind, pictures: list[Picture], calls: int = 1) -> float:
        seconds = calls * self._costs.call_s(kind, pictures)
        self.scheduler.charge(pictures, seconds)
        self._at += seconds
        return seconds

    def _encode_images(self, pictures: list[Picture]) -> float:
        images = [p for p in unread(pictures) if id(p.spec.source) not in self._read]
        self._read |= {id(picture.spec.source) for picture in images}
        return sum(self._spend("image", [picture]) for picture in images)

    def _started(self, pictures: list[Picture], seconds: float) -> None:
        for picture in pictures:
            group = self._groups.setdefault(picture.size, picture.size)
            steps = picture.spec.parameters.drawn_steps
            picture.sample = Sample(picture.spec, group, steps, picture.rows)
            self._begins(picture, self._at)
        self._at += seconds

    def _begins(self, picture: Picture, at: float) -> None:
        entry = self._originals[picture.entry]
        if not entry.begun:
            self.starts.setdefault(entry, at)

    def _stepped(self, pictures: list[Picture], steps: int) -> None:
        for picture in pictures:
            if picture.sample:
                picture.sample.step_index += steps
        if drawn := [p for p in pictures if p.sample and p.sample.drawn]:
            self._spend("decode", drawn)
            self._decoded(drawn)

    def _decoded(self, pictures: list[Picture]) -> None:
        for picture in pictures:
            picture.sample, picture.done = None, True
            if not picture.entry.undone:
                self._queue.remove(picture.entry)


class _Nobody:
    keep = False

    def post(self, event: Event) -> None: ...
    def fail(self, error: ZimageError) -> None: ...


NOBODY = _Nobody()
