"""A request that kills workers is refused, whatever its route: nginx would send it to all of them.

Each request that is being handled stands in a table that outlives the worker (``inflight``), by
what it asks for and who asks. What a worker died of gets a strike (``strikes``); a struck request
is handled while no other struck one is handled or drawn in this worker, and once it has
ended two workers so, it is refused. A drawing is known by its own fingerprint from its admission
on, and stands in the table while it is admitted and encoded.
"""

import asyncio
import hashlib
import threading
import time
from collections.abc import Awaitable, Callable
from typing import cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker import log
from worker.api import answers
from worker.api.caller import turn_of
from worker.api.middleware.access import INTERNAL
from worker.api.middleware.request_context import QUIET, RequestContext
from worker.coordination.heartbeat import digest
from worker.coordination.inflight import Handling
from worker.coordination.poison_requests import CLEAN, Record
from worker.errors import Unavailable, ZimageError
from worker.service import Service

ALONE_WAIT_S = 60.0
_BRIEF_WAIT_S = 20.0  # with a body whose handler waits for it: see BODY_TIMEOUT_S
STRIKES_TIMEOUT_S = 5.0
_POLL_S = 0.2
_UNGUARDED = QUIET | INTERNAL


class PoisonGuard:
    """``drawings``: routes that tell their fingerprint themselves, by ``clear``."""

    def __init__(self, app: ASGIApp, service: Service, drawings: frozenset[str]) -> None:
        self._app = app
        self._service = service
        self._drawings = drawings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNGUARDED:
            await self._app(scope, receive, send)
            return
        service, context = self._service, cast(RequestContext, scope["context"])
        handling = context.handling = Handling(service.in_flight, digest(context.id))
        context.clean = service.poison_requests.surely_clean(context.id)
        handling.resume()
        try:
            if not context.clean or scope["path"] not in self._drawings:
                receive = await self._watched(scope, context, receive)
            await self._app(scope, receive, send)
        except ZimageError as error:
            again = context.again if scope["path"] in self._drawings else ""
            await answers.of_error(error, again=again)(scope, receive, send)
        finally:
            handling.close()
            context.unlock()

    async def _watched(self, scope: Scope, context: RequestContext, receive: Receive) -> Receive:
        """``receive``, which hands the end of the body over once the request may go on."""
        asked = hashlib.blake2b(digest_size=16)
        for part in (scope["method"], scope["path"], turn_of(scope)):
            asked.update(part.encode() + b"\n")
        asked.update(scope["query_string"] + b"\n")
        if not context.clean:
            await clear(self._service, context, context.id, None)
        if scope["path"] in self._drawings:
            return receive
        if not _has_body(scope):
            await clear(self._service, context, asked.hexdigest(), None)
            return receive
        return _until_whole(receive, asked, lambda name: clear(self._service, context, name, None))


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


async def clear(
    service: Service, context: RequestContext, fingerprint: str, asked: str | None
) -> Record:
    """What is known of the request that ``fingerprint`` stands for; raises ``Refused`` where it
    kills workers. From here on it is known by that. One that is struck has waited for its turn.

    ``asked`` says what is to be drawn, if anything is."""
    handling = context.handling
    assert handling is not None, "the middleware comes first"
    record = await _record(service, context, fingerprint)
    if not record.strikes:
        handling.call(digest(fingerprint), struck=handling.struck)
        return record
    context.notes["strikes"] = record.strikes
    if record.refused:
        service.metrics.strikes.labels("too_slow" if record.too_slow else "refused").inc()
        raise record.refusal(asked)
    service.metrics.strikes.labels("alone").inc()
    handling.pause()  # whoever waits is to blame for nothing
    deadline = time.monotonic() + (_BRIEF_WAIT_S if asked is None else ALONE_WAIT_S)
    if record.alone:
        await _until_another_is_open(service, deadline)
    if not context.locked:
        await _take(service.apart, deadline)
        context.lock(service.apart)
    handling.call(digest(fingerprint), struck=True)
    handling.resume()
    return record


async def _record(service: Service, context: RequestContext, fingerprint: str) -> Record:
    if context.clean:
        return CLEAN
    look = asyncio.to_thread(service.poison_requests.arrive, context.id, fingerprint)
    try:
        return await asyncio.wait_for(look, STRIKES_TIMEOUT_S)
    except (OSError, TimeoutError) as error:
        # A full or stalled disk must not stop the drawing.
        log.failure("strikes cannot be read", error, request_id=context.id)
        return CLEAN


async def _take(lock: threading.Lock, deadline: float) -> None:
    """``lock``, which the thread that draws holds for a step at most. Polled: nothing wakes the
    event loop, and a struck request may wait for that."""
    while not lock.acquire(blocking=False):
        if time.monotonic() > deadline:
            raise Unavailable(
                "This request ended a worker before and waits until no other such one is handled.",
                retry_after_s=10.0,
            )
        await asyncio.sleep(_POLL_S / 10)


async def _until_another_is_open(service: Service, deadline: float) -> None:
    """Wait until this request's next victim, if it is one, would not be the last worker."""
    log.event("struck request waits for a second worker")
    while not await asyncio.to_thread(service.poison_requests.another_is_open):
        service.require_ready()
        if time.monotonic() > deadline:
            raise Unavailable(
                "This request ended a worker before and waits until a second one is back.",
                retry_after_s=10.0,
            )
        await asyncio.sleep(_POLL_S)
