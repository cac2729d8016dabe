"""Which pictures advance next. Pure: no clock, no thread, no pipeline.

A step is led by one picture: interactive before batch, keys by turns, the oldest of the key.
Others of its group fill the step up to the batch cap; those under way go before newcomers, so
that a group keeps going with its samples.
"""

from collections import Counter
from collections.abc import Callable, Iterable

from worker.engine.queue import Picture, Queue, Size
from worker.engine.request import Priority

QUANTUM_S = 2.0
"""Seconds of the device that a key uses before it is the next key's turn. Long enough that
most pictures are drawn in one turn: changing over at every step would make all of them late."""


class Turns:
    """Deficit round robin over the keys that have something to draw."""

    def __init__(self, quantum_s: float = QUANTUM_S) -> None:
        self._quantum_s = quantum_s
        self._credit_s: dict[str, float] = {}  # in the order of their turns

    def next(self, keys: Iterable[str]) -> str:
        """Whose turn it is among ``keys``, which is never empty. A key that has left is
        forgotten, debts and all; a new one comes last, with one quantum."""
        present = dict.fromkeys(keys)
        self._credit_s = {k: credit for k, credit in self._credit_s.items() if k in present}
        for key in present:
            self._credit_s.setdefault(key, self._quantum_s)
        while True:
            key = next(iter(self._credit_s))
            if self._credit_s[key] > 0:
                return key
            self._credit_s[key] = self._credit_s.pop(key) + self._quantum_s

    def charge(self, key: str, seconds: float) -> None:
        """``key`` has used the device for ``seconds``."""
        if key in self._credit_s:
            self._credit_s[key] -= seconds


class Scheduler:
    """``batch_cap``: most rows of one call for pictures of a size."""

    def __init__(self, batch_cap: Callable[[Size], int], quantum_s: float = QUANTUM_S) -> None:
        self._batch_cap = batch_cap
        self._turns = {priority: Turns(quantum_s) for priority in Priority}

    def leader(self, queue: Queue) -> Picture | None:
        """The picture that must advance next; None when there is none."""
        priority = min((entry.request.priority for entry in queue), default=None)
        if priority is None:
            return None
        entries = [entry for entry in queue if entry.request.priority == priority]
        key = self._turns[priority].next(entry.request.key for entry in entries)
        return next(p for e in entries if e.request.key == key for p in e.undone)

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

    def _fill(self, lead: Picture, peers: list[Picture]) -> list[Picture]:
        # Ends at the first that does not fit: a guided picture is not overtaken for ever.
        chosen, rows = [lead], lead.rows
        for picture in _in_order(peers):
            rows += picture.rows
            if rows > self._batch_cap(lead.size):
                break
            chosen.append(picture)
        return chosen

    def _room(self, lead: Picture, queue: Queue) -> int:
        # The group of a picture is known once it is started, so some wait started for another
        # step; not more of them than twice the cap, for they hold memory.
        started = sum(p.rows for p in queue.pictures() if p.sample and p.size == lead.size)
        return 2 * self._batch_cap(lead.size) - started


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
