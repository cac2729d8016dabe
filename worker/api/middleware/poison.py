"""A request that kills workers is refused, whatever its route: nginx would send it to all of them.

Each request that is being handled stands in a table that outlives the worker (``inflight``), by
what it asks for and who asks. What a worker died of gets a strike (``strikes``); a struck request
is handled while no other struck one is handled or drawn in this worker, and once it has
ended two workers so, it is refused. A drawing is known by its own fingerprint from its admission
on, and stands in the table while it is admitted and encoded.
"""

import hashlib
from collections.abc import Awaitable, Callable
from typing import cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.api import answers
from worker.api.caller import turn_of
from worker.api.middleware.access import INTERNAL
from worker.api.middleware.request_context import QUIET, RequestContext
from worker.components import Components
from worker.coordination.suspect import Suspect
from worker.errors import ZimageError

_UNGUARDED = QUIET | INTERNAL


class PoisonGuard:
    """``drawings``: routes that tell their fingerprint themselves."""

    def __init__(self, app: ASGIApp, components: Components, drawings: frozenset[str]) -> None:
        self._app = app
        self._components = components
        self._drawings = drawings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNGUARDED:
            await self._app(scope, receive, send)
            return
        components, context = self._components, cast(RequestContext, scope["context"])
        clean = components.poison_requests.surely_clean(context.id, context.arrived_at)
        suspect = context.suspect = Suspect(context.id, components.in_flight, clean=clean)
        suspect.handling.resume()
        try:
            if not clean or scope["path"] not in self._drawings:
                receive = await self._watched(scope, suspect, receive)
            await self._app(scope, receive, send)
        except ZimageError as error:
            again = context.again if scope["path"] in self._drawings else ""
            await answers.of_error(error, again=again)(scope, receive, send)
        finally:
            suspect.close()
            if suspect.strikes:
                context.notes["strikes"] = suspect.strikes

    async def _watched(self, scope: Scope, suspect: Suspect, receive: Receive) -> Receive:
        """``receive``, which hands the end of the body over once the request may go on."""
        asked = hashlib.blake2b(digest_size=16)
        for part in (scope["method"], scope["path"], turn_of(scope)):
            asked.update(part.encode() + b"\n")
        asked.update(scope["query_string"] + b"\n")
        clear = self._components.quarantine.clear
        if not suspect.clean:
            await clear(suspect, suspect.id, None)
        if scope["path"] in self._drawings:
            return receive
        if not _has_body(scope):
            await clear(suspect, asked.hexdigest(), None)
            return receive
        return _until_whole(receive, asked, lambda name: clear(suspect, name, None))


def _until_whole(
    receive: Receive, asked: "hashlib.blake2b", then: Callable[[str], Awaitable[object]]
) -> Receive:
    whole = False

    async def watched() -> Message:
        nonlocal whole
        message = await receive()
        if not whole and message["type"] == "http.request":
            asked.update(message.get("body", b""))
            whole = not message.get("more_body", False)
            if whole:
                await then(asked.hexdigest())
        return message

    return watched


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )
