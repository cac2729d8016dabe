"""Who asks: whose pictures and jobs these are, and who takes turns with whom."""

from dataclasses import dataclass
from typing import Literal

from worker.storage.keys import Key


@dataclass(frozen=True)
class Caller:
    """``owner`` is the key's id, or ``EVERYONE``; ``turn`` takes turns in the queue: the key's
    id, or the client's address (its network, if IPv6) where there are no keys. ``key`` has the
    limits."""

    owner: str
    turn: str
    name: str
    role: Literal["user", "ops"] = "user"
    key: Key | None = None

    @classmethod
    def of(cls, key: Key) -> "Caller":
        return cls(key.id, key.id, key.name, key.role, key)

    def may_see(self, owner: str) -> bool:
        """Whether what belongs to ``owner`` is this caller's to see and to change."""
        return self.role == "ops" or self.owner == owner
