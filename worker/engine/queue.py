"""The bounded queue: who waits and who is being drawn, in order. It decides nothing."""

from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from worker.engine.request import DrawRequest, Event, Priority
from worker.errors import ZimageError
from worker.models.base import Sample
from worker.types import DrawSpec, Parameters

Size = tuple[int, int]
"""Width and height: what is known of a picture's group before its prompt is encoded."""


class QueueFull(Exception):
    """The queue's hard bound is reached."""


class Waiter(Protocol):
    """Who is told about a request. Both calls come from any thread and never block."""

    keep: bool  # may not be handed back: its answer has begun

    def post(self, event: Event) -> None: ...
    def fail(self, error: ZimageError) -> None: ...


@dataclass(eq=False, slots=True)
class Picture:
    """One picture of a request: the unit that is scheduled.

    ``solo``: it must share its calls with no other picture. Such things are kept, not computed: the
    scheduler looks at them for every picture that waits, at every step.
    """

    entry: "Entry" = field(repr=False)
    image_index: int
    spec: DrawSpec
    sample: Sample | None = None  # from the end of ``start`` to the end of ``finish``
    started_at: float = 0.0  # monotonic seconds
    device_s: float = 0.0  # its rows' share of the calls that it was in
    batch_size: int = 0
    previews: int = 0
    done: bool = False
    size: Size = field(init=False)
    solo: bool = field(init=False)
    _expected_rows: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.size = self.spec.parameters.size
        self.solo = self.entry.request.exclusive or self.spec.parameters.reproducible
        self._expected_rows = expected_rows(self.spec.parameters)

    @property
    def rows(self) -> int:
        """Rows of a batch that it takes; before it is started, what guidance suggests."""
        return self.sample.rows if self.sample else self._expected_rows

    @property
    def unread(self) -> bool:
        """The picture that it goes on from is to be encoded yet."""
        source = self.spec.source
        return self.sample is None and source is not None and source.encoded is None

    @property
    def steps_done(self) -> int:
        return self.sample.step_index if self.sample else 0

    @property
    def steps_left(self) -> int:
        steps = self.sample.steps if self.sample else self.spec.parameters.drawn_steps
        return steps - self.steps_done


def unread(pictures: Iterable[Picture]) -> list[Picture]:
    """The first of ``pictures`` for each picture that is to be encoded: some share theirs."""
    found = [picture for picture in pictures if picture.unread]
    return list({id(p.spec.source): p for p in reversed(found)}.values())[::-1] if found else []


def rows_of(pictures: Iterable[Picture]) -> int:
    """Of a batch that has all of ``pictures``."""
    return sum(picture.rows for picture in pictures)


def lora_rows_of(pictures: Iterable[Picture]) -> int:
    """Those of ``rows_of`` that have adapters."""
    return sum(picture.rows for picture in pictures if picture.spec.parameters.lora)


def share(pictures: Sequence[Picture], seconds: float) -> None:
    """Write ``seconds`` of the device down to those who used it, by their rows."""
    each_s = seconds / rows_of(pictures)
    for picture in pictures:
        picture.device_s += each_s * picture.rows


def any_suspect(pictures: Iterable[Picture]) -> bool:
    """Whether workers may have died of one of them."""
    return any(picture.entry.request.exclusive for picture in pictures)


def expected_rows(parameters: Parameters) -> int:
    """Rows of a picture that is not started: a guided one is drawn twice."""
    return 2 if parameters.guidance_scale > 0 else 1


@dataclass(eq=False, slots=True)
class Entry:
    """One request in the engine, from admission until it is answered."""

    request: DrawRequest
    waiter: Waiter  # until it is answered
    sequence: int  # of admission: orders equal arrivals
    submitted_at: float = 0.0  # monotonic seconds
    since: float = (
        0.0  # orders the queue: its arrival, or that of the attempt that was promised room
    )
    work_s: float = 0.0  # of the device, as predicted when it was admitted
    foreseen: tuple[float, float] | None = None  # the first forecast: at, seconds to wait
    begun: bool = False  # one of its pictures has been in a step
    over: bool = False  # answered
    pictures: list[Picture] = field(init=False)  # none once it is answered and tidied up
    shape: tuple[object, ...] = field(init=False)  # none can overtake another of the same

    def __post_init__(self) -> None:
        self.since = self.since or self.request.arrived_at
        specs = enumerate(self.request.specs)
        self.pictures = [Picture(self, index, spec) for index, spec in specs]
        first = self.pictures[0]
        self.shape = self.request.key, self.request.priority, first.size, first.solo

    @property
    def rank(self) -> tuple[Priority, float, int]:
        """Interactive before batch; within a priority the oldest first."""
        return self.request.priority, self.since, self.sequence

    @property
    def first_undone(self) -> Picture:
        """Its next picture. An entry that is not answered has one."""
        return next(picture for picture in self.pictures if not picture.done)

    @property
    def undone(self) -> list[Picture]:
        return [picture for picture in self.pictures if not picture.done]


class Queue:
    """Every request that is not answered, by rank; at most ``max_waiting`` that have not begun."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._entries: list[Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "Queue":
        """One that holds ``entries`` and is not bounded."""
        queue = cls(0)
        queue._entries = sorted(entries, key=lambda each: each.rank)
        return queue

    @property
    def waiting(self) -> list[Entry]:
        return [entry for entry in self._entries if not entry.begun]

    def add(self, entry: Entry, *, beyond: bool = False) -> None:
        """Take ``entry`` in at its place; QueueFull past the bound, unless it may go ``beyond``."""
        if not beyond and len(self.waiting) >= self._max_waiting:
            raise QueueFull
        insort(self._entries, entry, key=lambda each: each.rank)

    def remove(self, entry: Entry) -> None:
        """Let ``entry`` go, if it is here."""
        if entry in self._entries:
            self._entries.remove(entry)

    def pictures(self) -> Iterator[Picture]:
        """Every picture that is not done, by the rank of its request."""
        return (p for entry in self._entries for p in entry.pictures if not p.done)
