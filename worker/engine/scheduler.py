"""Which pictures advance next. Pure: no clock, no thread, no pipeline.

A step is led by one picture: interactive before batch work (but for its share), keys by turns,
the oldest of the key, or of all keys that have about as many requests here. Others of its group
fill the step up to the batch cap; those under way go before newcomers, so that a group keeps going
with its samples. Newcomers are chosen from the oldest that wait, as many as make a batch: if
everybody who comes overtook those of other shapes, nobody could be told when its turn comes. Who
ranks below the leader (batch work beside an interactive picture, a busy key beside one that asks
now and then) rides along only where that hardly slows the step.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import ceil

from worker.engine.costs import Costs
from worker.engine.deficit_round_robin import DeficitRoundRobin
from worker.engine.queue import Entry, Picture, Queue, Size, rows_of
from worker.engine.request import Priority

QUANTUM_S = 0.5
"""Seconds of the device that a key uses before it is the next key's turn, at least."""
BATCH_SHARE = 0.05
"""Of the device's time that batch work gets however many interactive requests there are."""
_WHOLE = 1.5
"""A turn is this many times as long as the cheapest picture whose turn it might be: where all
cost the same they are drawn one after the other, for slicing them would make all of them late,
and a cheap one still waits for a slice of a dear one only."""
_MODEST = 1.5
"""Keys that have at most so many times the average number of requests here are equals."""
_COURTESY = 1.25
"""Riders of a lower rank make a step at most so many times longer."""
_BUSY = 2
"""A size is busy from so many full batches on, until there is less than one: by then it has been
drawn without a pause, and what a smaller batch spares one picture the others wait longer for."""

Rank = tuple[Priority, bool]


class Scheduler:
    """``costs`` says how many rows may share a call and what a picture costs."""

    def __init__(self, costs: Costs, quantum_s: float = QUANTUM_S) -> None:
        self.costs = costs
        self._quantum_s = quantum_s
        self._turns = {priority: DeficitRoundRobin() for priority in Priority}
        self._contended = False  # both priorities have something to draw
        self._owed_s = 0.0  # batch work lags so far behind its share
        self._busy: set[Size] = set()

    def copy(self) -> "Scheduler":
        """One in the same state, to try things out."""
        twin = Scheduler(self.costs, self._quantum_s)
        twin._turns = {priority: turns.copy() for priority, turns in self._turns.items()}
        twin._contended, twin._owed_s = self._contended, self._owed_s
        twin._busy = set(self._busy)
        return twin

    def leader(self, queue: Queue) -> Picture | None:
        """The picture that must advance next; None when there is none."""
        lines: dict[Priority, defaultdict[str, list[Entry]]] = {}
        for entry in queue:
            request = entry.request
            lines.setdefault(request.priority, defaultdict(list))[request.key].append(entry)
        if not lines:
            return None
        priority = self._priority(lines)
        line = lines[priority]
        firsts = {key: entries[0].first_undone for key, entries in line.items()}
        key = self._turns[priority].next(firsts, self._quantum(firsts.values()))
        requests = {key: len(entries) for key, entries in line.items()}
        return self._oldest_equal(firsts[key], firsts, requests)

    def _oldest_equal(
        self, lead: Picture, firsts: Mapping[str, Picture], requests: Mapping[str, int]
    ) -> Picture:
        """Where it is the turn of a key that does not flood, the oldest picture of all such keys
        that have not used up a turn: which of them came again and which is new tells nobody
        anything."""
        most = ceil(_MODEST * sum(requests.values()) / len(requests))
        if requests[lead.entry.request.key] > most:
            return lead
        turns = self._turns[lead.entry.request.priority]
        equals = [p for k, p in firsts.items() if requests[k] <= most and turns.modest(k)]
        return min([lead, *equals], key=lambda picture: picture.entry.rank)

    def newcomers(self, lead: Picture, queue: Queue) -> list[Picture]:
        """Pictures to start now so that they join the step of ``lead``, which may be one."""
        pictures = list(queue.pictures())
        self._note_busy(lead.size, pictures)
        waiting = [picture for picture in pictures if picture.sample is None]
        if not waiting:
            return []
        oldest = set(waiting[: self._cap(lead.size)])
        rank, peers = self._rank(lead), _peers(lead, pictures)
        peers = [p for p in peers if p.sample or self._may_ride(p, lead, rank, oldest)]
        chosen = [p for p in self._fill(lead, peers) if p.sample is None]
        if not chosen or chosen == [lead]:
            return chosen
        return chosen[: max(self._room(lead, pictures), int(lead.sample is None))]

    def batch(self, lead: Picture, queue: Queue) -> list[Picture]:
        """The started pictures that share the next step with ``lead``, itself first."""
        return self._fill(lead, _peers(lead, (p for p in queue.pictures() if p.sample)))

    def charge(self, pictures: Sequence[Picture], seconds: float) -> None:
        """Share ``seconds`` of the device among the keys of ``pictures`` by rows."""
        row_s = seconds / rows_of(pictures)
        for picture in pictures:
            request, used_s = picture.entry.request, row_s * picture.rows
            self._turns[request.priority].charge(request.key, used_s)
            if self._contended:
                batch = request.priority is Priority.BATCH
                self._owed_s += -used_s if batch else used_s * BATCH_SHARE / (1 - BATCH_SHARE)

    def steady_s(self, batch: list[Picture]) -> float:
        """Seconds for which ``batch`` goes on unless somebody comes or is done."""
        rows: Counter[tuple[Priority, str]] = Counter()
        for picture in batch:
            rows[picture.entry.request.priority, picture.entry.request.key] += picture.rows
        lefts_s = [
            credit_s * rows.total() / own
            for (priority, key), own in rows.items()
            if (credit_s := self._turns[priority].left_s(key)) > 0
        ]
        left_s, lead = min(lefts_s, default=0.0), batch[0].entry.request
        if not self._contended:
            return left_s
        if lead.priority is Priority.BATCH:
            return 0.0
        return min(left_s, max(0.0, -self._owed_s) * (1 - BATCH_SHARE) / BATCH_SHARE)

    def _note_busy(self, size: Size, pictures: Sequence[Picture]) -> None:
        here = sum(picture.rows for picture in pictures if picture.size == size)
        full = self.costs.most_rows(size)
        if here >= _BUSY * full and size not in self._busy:
            # Whoever was cancelled left without a last step, in which their size would have gone.
            self._busy &= {picture.size for picture in pictures}
            self._busy.add(size)
        elif here < full:
            self._busy.discard(size)

    def _cap(self, size: Size, backlog: int | None = None) -> int:
        return self.costs.batch_cap(size, backlog, busy=size in self._busy)

    def _priority(self, lines: Mapping[Priority, Mapping[str, list[Entry]]]) -> Priority:
        self._contended = len(lines) > 1
        if not self._contended:
            self._owed_s = 0.0
            return next(iter(lines))
        first = next(iter(lines[Priority.BATCH].values()))[0].first_undone
        step_s = self.costs.predict_s("step", first.size, first.rows)
        return Priority.BATCH if self._owed_s >= step_s else Priority.INTERACTIVE

    def _quantum(self, firsts: Iterable[Picture]) -> float:
        drawn_s = self.costs.drawing_s
        cheapest_s = min(drawn_s(p.size, p.rows, p.spec.parameters.drawn_steps) for p in firsts)
        return max(self._quantum_s, _WHOLE * cheapest_s)

    def _rank(self, picture: Picture) -> Rank:
        request = picture.entry.request
        return request.priority, not self._turns[request.priority].fresh(request.key)

    def _fill(self, lead: Picture, peers: list[Picture]) -> list[Picture]:
        # Ends at the first that does not fit: a guided picture is not overtaken for ever.
        if not peers:
            return [lead]
        backlog = lead.rows + sum(p.rows for p in peers)
        cap = self._cap(lead.size, backlog)
        rank, chosen, rows, ranked_rows = self._rank(lead), [lead], lead.rows, lead.rows
        for picture, below in self._in_order(peers, rank):
            rows += picture.rows
            if rows > cap or (below and self._slows(lead, ranked_rows, rows)):
                break
            ranked_rows = ranked_rows if below else rows
            chosen.append(picture)
        return chosen

    def _may_ride(
        self, picture: Picture, lead: Picture, lead_rank: Rank, oldest: set[Picture]
    ) -> bool:
        rank = self._rank(picture)
        if rank > lead_rank:
            return False
        return not rank[1] or picture in oldest or picture.entry is lead.entry

    def _slows(self, lead: Picture, rows: int, with_riders: int) -> bool:
        if not self.costs.compared(lead.size):
            return False
        step_s = self.costs.predict_s("step", lead.size, rows)
        return self.costs.predict_s("step", lead.size, with_riders) > _COURTESY * step_s

    def _room(self, lead: Picture, pictures: Sequence[Picture]) -> int:
        # The group of a picture is known once it is started, so some wait started for another
        # step; not more of them than twice the cap, for they hold memory.
        started = sum(p.rows for p in pictures if p.sample and p.size == lead.size)
        return 2 * self._cap(lead.size) - started

    def _in_order(self, peers: list[Picture], lead: Rank) -> list[tuple[Picture, bool]]:
        """By rank, then those under way, then one of each key after the other; and whether the
        picture ranks below ``lead``."""
        nth: Counter[tuple[Priority, str]] = Counter()
        ranks: dict[Picture, tuple[Rank, bool, int]] = {}
        for picture in peers:
            request = picture.entry.request
            nth[request.priority, request.key] += 1
            turn = nth[request.priority, request.key]
            ranks[picture] = self._rank(picture), picture.sample is None, turn
        return [(p, ranks[p][0] > lead) for p in sorted(peers, key=ranks.__getitem__)]


def _peers(lead: Picture, pictures: Iterable[Picture]) -> list[Picture]:
    if lead.solo:
        return []
    return [p for p in pictures if _alike(lead, p) and not p.solo and p is not lead]


def _alike(one: Picture, other: Picture) -> bool:
    if one.sample and other.sample:
        return one.sample.group == other.sample.group
    return one.size == other.size
