"""Things that a worker has a number of, of which no owner may take all."""

from collections import Counter
from collections.abc import Callable

from worker.errors import LimitReached, Overloaded

_RETRY_S = 5.0


class Shares:
    """``most`` at a time, ``each`` of them for one owner. ``noun`` says of what, in the plural."""

    def __init__(self, noun: str, most: int, each: int) -> None:
        self._noun = noun
        self._most, self._each = most, each
        self._held: Counter[str] = Counter()

    def take(self, owner: str) -> Callable[[], None]:
        """Take one for ``owner``; whoever calls what is returned, once, gives it back. Raises
        ``LimitReached`` where the owner has its share, ``Overloaded`` where all are taken."""
        if self._held[owner] >= self._each:
            raise LimitReached(
                f"You have {self._each} {self._noun} under way here, which is as many as one key "
                "may have: wait until one of them ends.",
                retry_after_s=_RETRY_S,
                retry=True,
            )
        if self._held.total() >= self._most:
            raise Overloaded(f"Too many {self._noun} are under way here.", retry_after_s=_RETRY_S)
        self._held[owner] += 1
        return lambda: self._give_back(owner)

    def _give_back(self, owner: str) -> None:
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
