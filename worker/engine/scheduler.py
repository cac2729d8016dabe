"""Which pictures advance next. Pure: no clock, no thread, no pipeline.

A step is led by one picture: interactive before batch, keys by turns, the oldest of the key.
Others of its group fill the step up to the batch cap; those under way go before newcomers, so
that a group keeps going with its samples.
"""

from collections import Counter
from collections.abc import Iterable

from worker.engine.costs import Costs
from worker.engine.queue import Entry, Picture, Queue
from worker.engine.request import Priority

QUANTUM_S = 2.0
"""Seconds of the device that a key uses before it is the next key's turn, at least."""
_WHOLE = 1.5
"""A turn is this many times as long as the cheapest picture whose turn it might be: where all
cost the same they are drawn one after the other, for slicing them would make all of them late,
and a cheap one still waits for a slice of a dear one only."""


class Turns:
    """Deficit round robin over the keys that have something to draw."""

    def __init__(self) -> None:
        self._credit_s: dict[str, float] = {}  # in the order of their turns

    def next(self, keys: Iterable[str], quantum_s: float) -> str:
        """Whose turn it is among ``keys``, which is never empty. A key that has left is
        forgotten, debts and all; a new one comes last, with one quantum."""
        present = dict.fromkeys(keys)
        self._credit_s = {k: credit for k, credit in self._credit_s.items() if k in present}
        for key in present:
            self._credit_s.setdefault(key, quantum_s)
        while True:
            key = next(iter(self._credit_s))
            if self._credit_s[key] > 0:
                return key
            self._credit_s[key] = self._credit_s.pop(key) + quantum_s

    def charge(self, key: str, seconds: float) -> None:
        """``key`` has used the device for ``seconds``."""
        if key in self._credit_s:
            self._credit_s[key] -= seconds


class Scheduler:
    """``costs`` says how many rows may share a call and what a picture costs."""

    def __init__(self, costs: Costs, quantum_s: float = QUANTUM_S) -> None:
        self._costs = costs
        self._quantum_s = quantum_s
        self._turns = {priority: Turns() for priority in Priority}

    def leader(self, queue: Queue) -> Picture | None:
        """The picture that must advance next; None when there is none."""
        priority = min((entry.request.priority for entry in queue), default=None)
        if priority is None:
            return None
        heads: dict[str, Entry] = {}
        for entry in queue:
            if entry.request.priority == priority:
                heads.setdefault(entry.request.key, entry)
        firsts = {key: entry.undone[0] for key, entry in heads.items()}
        return firsts[self._turns[priority].next(firsts, self._quantum(firsts.values()))]

    def newcomers(self, lead: Picture, queue: Queue) -> list[Picture]:
        """Pictures to start now so that they join the step of ``lead``, which may be one."""
        chosen = [p for p in self._fill(lead, _peers(lead, queue)) if p.sample is None]
        return chosen[: max(self._room(lead, queue), int(lead.sample is None))]

    def batch(self, lead: Picture, queue: Queue) -> list[Picture]:
        """The started pictures that share the next step with ``lead``, itself first."""
        return self._fill(lead, [p for p in _peers(lead, queue) if p.sample])

    def charge(self, pictures: Iterable[Picture], seconds: float) -> None:
        """Share ``seconds`` of the device among the keys of ``pictures`` by rows."""
        pictures = list(pictures)
        rows = sum(picture.rows for picture in pictures)
        for picture in pictures:
            request = picture.entry.request
            self._turns[request.priority].charge(request.key, seconds * picture.rows / rows)

    def _quantum(self, firsts: Iterable[Picture]) -> float:
        cheapest_s = min(self._costs.drawing_s(p.size, p.rows, p.spec.steps) for p in firsts)
        return max(self._quantum_s, _WHOLE * cheapest_s)

    def _fill(self, lead: Picture, peers: list[Picture]) -> list[Picture]:
        # Ends at the first that does not fit: a guided picture is not overtaken for ever.
        chosen, rows = [lead], lead.rows
        for picture in _in_order(peers):
            rows += picture.rows
            if rows > self._costs.batch_cap(lead.size):
                break
            chosen.append(picture)
        return chosen

    def _room(self, lead: Picture, queue: Queue) -> int:
        # The group of a picture is known once it is started, so some wait started for another
        # step; not more of them than twice the cap, for they hold memory.
        started = sum(p.rows for p in queue.pictures() if p.sample and p.size == lead.size)
        return 2 * self._costs.batch_cap(lead.size) - started


def _peers(lead: Picture, queue: Queue) -> list[Picture]:
    if lead.solo:
        return []
    return [p for p in queue.pictures() if p is not lead and not p.solo and _alike(lead, p)]


def _alike(one: Picture, other: Picture) -> bool:
    if one.sample and other.sample:
        return one.sample.group == other.sample.group
    return one.size == other.size


def _in_order(peers: list[Picture]) -> list[Picture]:
    """Interactive first, then those under way, then one of each key after the other."""
    nth: Counter[tuple[Priority, str]] = Counter()
    ranks: dict[Picture, tuple[Priority, bool, int]] = {}
    for picture in peers:
        request = picture.entry.request
        nth[request.priority, request.key] += 1
        turn = nth[request.priority, request.key]
        ranks[picture] = request.priority, picture.sample is None, turn
    return sorted(peers, key=ranks.__getitem__)
