"""Operators may see what belongs to others, and the audit log says when they did."""

from collections.abc import Iterable
from typing import Any

from starlette.requests import Request

from worker.api.caller import caller_of
from worker.api.middleware.request_context import context_of
from worker.components import Components


def note(components: Components, request: Request, owners: Iterable[str], **what: Any) -> None:
    """Write down that whoever asks saw or changed ``what``, if it is of other ``owners``."""
    caller = caller_of(request)
    others = sorted(set(owners) - {caller.owner})
    if caller.role == "ops" and others:
        components.audit.note(
            "as_operator",
            caller.owner,
            caller.name,
            context_of(request).key,
            request=f"{request.method} {request.scope['path'][:200]}",
            of=others,
            **what,
        )
