"""Who asks: whose pictures and jobs these are, and who takes turns with whom."""

from dataclasses import dataclass
from typing import Literal, cast

from starlette.requests import Request
from starlette.types import Scope

from worker.api.middleware.request_context import RequestContext, context_of
from worker.coordination.addresses import network_of
from worker.storage.keys import EVERYONE, Key

__all__ = ["EVERYONE", "Caller", "caller_of"]


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


def turn_of(scope: Scope) -> str:
    """Who takes turns, as ``Caller.turn``."""
    known: Caller | None = scope.get("caller")
    return (
        known.turn if known is not None else network_of(cast(RequestContext, scope["context"]).key)
    )


def caller_of(request: Request) -> Caller:
    """Who was let in with this request; without keys everybody is ``EVERYONE``."""
    known = request.scope.get("caller")
    if known is not None:
        return cast(Caller, known)
    return Caller(EVERYONE, network_of(context_of(request).key), EVERYONE)
