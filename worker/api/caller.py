"""Who asks with a request."""

from functools import lru_cache
from typing import cast

from starlette.requests import Request
from starlette.types import Scope

from worker.api.middleware.request_context import RequestContext, context_of
from worker.coordination.addresses import network_of
from worker.generation.caller import Caller
from worker.storage.keys import EVERYONE

__all__ = ["EVERYONE", "Caller", "caller_of"]


def turn_of(scope: Scope) -> str:
    """Who takes turns, as ``Caller.turn``."""
    known: Caller | None = scope.get("caller")
    return (
        known.turn if known is not None else network_of(cast(RequestContext, scope["context"]).key)
    )


def caller_of(request: Request) -> Caller:
    """Who was let in with this request; without keys everybody is ``EVERYONE``."""
    known: Caller | None = request.scope.get("caller")
    if known is None:
        known = request.scope["caller"] = _without_key(context_of(request).key)
    return known


@lru_cache(1024)
def _without_key(address: str) -> Caller:
    return Caller(EVERYONE, network_of(address), EVERYONE)
