"""Whose turn it is: deficit round robin over the keys that have something to draw. Pure.

As in FQ-CoDel (RFC 8290, section 4.2), a key that has asked for nothing lately goes first, for one
quantum: who asks now and then does not wait for who floods. A key that leaves keeps its place and
its debts until its turn has passed, so asking in small portions gains next to nothing.
"""

from collections.abc import Iterable

_SPENT_S = 1e-6  # what is left by rounding is nothing, however many calls it was spent in
_MAX_KEYS = 1000  # beyond, those that have left are forgotten at once


class DeficitRoundRobin:
    """Seconds that each key may still use, in the order of their turns."""

    def __init__(self) -> None:
        self._fresh: dict[str, float] = {}
        self._credit_s: dict[str, float] = {}
        self._spent: set[str] = set()  # have used up a turn and still have something to draw

    def copy(self) -> "DeficitRoundRobin":
        """The same turns, to try things out."""
        twin = DeficitRoundRobin()
        twin._fresh, twin._credit_s = dict(self._fresh), dict(self._credit_s)
        twin._spent = set(self._spent)
        return twin

    def next(self, keys: Iterable[str], quantum_s: float) -> str:
        """Whose turn it is among ``keys``, which is never empty."""
        present = dict.fromkeys(keys)
        self._spent &= present.keys()
        for key in present:
            if key not in self._credit_s:
                self._fresh.setdefault(key, quantum_s)
        self._forget(present)
        if (fresh := self._next_fresh(present, quantum_s)) is not None:
            return fresh
        while True:
            key = next(iter(self._credit_s))
            if key not in present:
                del self._credit_s[key]
            elif self._credit_s[key] > _SPENT_S:
                return key
            else:
                self._credit_s[key] = self._credit_s.pop(key) + quantum_s
                self._spent.add(key)

    def charge(self, key: str, seconds: float) -> None:
        """``key`` has used the device for ``seconds``."""
        for credit_s in (self._fresh, self._credit_s):
            if key in credit_s:
                credit_s[key] -= seconds

    def fresh(self, key: str) -> bool:
        """Whether ``key`` has not used its first quantum yet."""
        return self._fresh.get(key, 0.0) > _SPENT_S or (
            key not in self._fresh and key not in self._credit_s
        )

    def modest(self, key: str) -> bool:
        """Whether ``key`` has seconds left and used up no turn since it had nothing to draw."""
        return key not in self._spent and self.left_s(key) > 0.0

    def left_s(self, key: str) -> float:
        """Seconds until another key's turn comes."""
        return self._fresh.get(key, self._credit_s.get(key, 0.0)) - _SPENT_S

    def _forget(self, present: dict[str, None]) -> None:
        if len(self._credit_s) > _MAX_KEYS:
            self._credit_s = {k: s for k, s in self._credit_s.items() if k in present}
        for key in list(self._credit_s):
            if key in present:
                return
            del self._credit_s[key]

    def _next_fresh(self, present: dict[str, None], quantum_s: float) -> str | None:
        for key in list(self._fresh):
            if key in present and self._fresh[key] > _SPENT_S:
                return key
            # Used up, or gone: to the end of the others, where gone ones are forgotten in turn.
            self._credit_s[key] = min(0.0, self._fresh.pop(key)) + quantum_s
            if key in present:
                self._spent.add(key)
        return None
