"""When it will be whose turn: position and wait of everybody who has not begun. Pure."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from worker.engine.costs import Costs
from worker.engine.queue import Entry, Picture, Size
from worker.engine.request import Priority, Queued


def forecast(entries: Iterable[Entry], costs: Costs) -> dict[Entry, Queued]:
    """Position (requests ahead that have not begun either) and wait of each waiting entry.

    The pictures are dealt into batches in the order expected; a batch takes as long as its
    longest picture, and an entry waits for the batches before the one that its first joins.
    """
    batches = _Batches(costs)
    ordered = _in_order(entries, costs)
    joined = {entry: batches.place(entry) for entry in ordered}
    starts = batches.starts()
    waiting = [entry for entry in ordered if not entry.begun]
    return {e: Queued(k, round(starts[joined[e]], 1)) for k, e in enumerate(waiting)}


def remaining_s(picture: Picture, rows: int, costs: Costs) -> float:
    """Seconds until ``picture`` is drawn and decoded if it goes on in steps of ``rows`` rows."""
    step_s = costs.predict_s("step", picture.size, rows)
    return round(picture.steps_left * step_s + costs.predict_s("decode", picture.size, 1), 2)


def work_s(entry: Entry, costs: Costs) -> float:
    """Seconds that are left of ``entry`` if it is drawn alone."""
    return sum(_Batch(p.size, [p]).seconds(costs) for p in entry.undone)


def _in_order(entries: Iterable[Entry], costs: Costs) -> list[Entry]:
    """By priority, those under way first; then keys take turns by predicted seconds."""
    used_s: dict[tuple[Priority, str], float] = defaultdict(float)
    places: dict[Entry, tuple[Priority, bool, float]] = {}
    for entry in sorted(entries, key=lambda each: each.rank):
        owner = entry.request.priority, entry.request.key
        places[entry] = entry.request.priority, not entry.begun, used_s[owner]
        used_s[owner] += work_s(entry, costs)
    return sorted(places, key=places.__getitem__)


@dataclass
class _Batch:
    size: Size
    pictures: list[Picture] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(picture.rows for picture in self.pictures)

    def seconds(self, costs: Costs) -> float:
        fresh = sum(picture.sample is None for picture in self.pictures)
        encode_s = costs.predict_s("encode", self.size, fresh) if fresh else 0.0
        steps = max(picture.steps_left for picture in self.pictures)
        step_s = costs.predict_s("step", self.size, self.rows)
        return encode_s + steps * step_s + costs.predict_s("decode", self.size, len(self.pictures))


class _Batches:
    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._all: list[_Batch] = []
        self._open: dict[Size, int] = {}

    def place(self, entry: Entry) -> int:
        """Deal the pictures of ``entry``; the number of the batch that its first joins."""
        return min(self._place(picture) for picture in entry.undone)

    def starts(self) -> list[float]:
        """Seconds until each batch begins."""
        starts, at = [], 0.0
        for batch in self._all:
            starts.append(at)
            at += batch.seconds(self._costs)
        return starts

    def _place(self, picture: Picture) -> int:
        number = self._open.get(picture.size)
        if number is None or picture.solo or not self._fits(picture, number):
            number = len(self._all)
            self._all.append(_Batch(picture.size))
            if not picture.solo:
                self._open[picture.size] = number
        self._all[number].pictures.append(picture)
        return number

    def _fits(self, picture: Picture, number: int) -> bool:
        rows = self._all[number].rows + picture.rows
        return rows <= self._costs.batch_cap(picture.size)
