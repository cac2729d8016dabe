"""A dictionary that forgets: what clients choose must not fill the memory. Pure."""

from collections.abc import Mapping
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recently(dict[K, V]):
    """At most ``most`` keys: one beyond them takes the place of that which was set, or touched,
    longest ago."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: K, value: V) -> None:
        if key not in self and len(self) >= self._most:
            del self[next(iter(self))]
        super().__setitem__(key, value)

    def update(self, other: Mapping[K, V]) -> None:  # type: ignore[override]
        """Set all of ``other``. ``dict``'s own would pass the bound by."""
        for key, value in other.items():
            self[key] = value

    def setdefault(self, key: K, default: V) -> V:
        """The value of ``key``, which is set where there was none."""
        if key not in self:
            self[key] = default
        return self[key]

    def touch(self, key: K) -> None:
        """``key`` is in use: it is the last to be forgotten."""
        super().__setitem__(key, self.pop(key))
