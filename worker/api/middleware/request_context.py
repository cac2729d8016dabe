"""What goes for every request: its id and arrival, the headers of its answer, its log line."""

import math
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker import log
from worker.api import answers
from worker.coordination.host_clocks import HostClocks
from worker.coordination.suspect import Suspect
from worker.observability.metrics import Metrics
from worker.observability.traces import OFF, Trace, Traces
from worker.timers import Timers

QUIET = frozenset({"/readyz", "/livez", "/metrics", "/admin/ops", "/admin/key"})
"""Routes that are asked all the time: not logged, not counted."""

CLIENT_GONE = 499
_ID = re.compile(r"[0-9a-f]{32}")
_TURN = re.compile("[1-9]")
_MAX_AGE_S = 86_400.0


@dataclass
class RequestContext:
    """One request as nginx names it: ``id`` and ``arrived_at`` stay the same over its replays.

    ``key`` is who asks. ``again``: which turn it would be if nginx asked all workers once more, or
    empty. ``headers`` by their names in lower case. ``notes`` end up in the log line. ``suspect``:
    as whoever looks for what killed a worker sees it; requests that are asked all the time are
    none.
    """

    id: str
    arrived_at: float
    key: str
    again: str = ""
    headers: Mapping[bytes, bytes] = field(default_factory=dict)
    notes: dict[str, log.Value] = field(default_factory=dict)
    suspect: Suspect | None = None
    trace: Trace = OFF
    timers: Timers = field(default_factory=Timers)
    _afterwards: list[Callable[[], object]] | None = field(default_factory=list)

    def header(self, name: bytes, default: str = "") -> str:
        """What the client says in header ``name`` (in lower case)."""
        value = self.headers.get(name)
        return default if value is None else value.decode("latin-1")

    def afterwards(self, work: Callable[[], object]) -> None:
        """Do ``work`` when the answer is sent, or was not to be: at once, if that was before."""
        if self._afterwards is None:
            work()
        else:
            self._afterwards.append(work)

    def end(self) -> None:
        """The answer is sent, or nobody waits for it any more."""
        works, self._afterwards = self._afterwards or (), None
        for work in works:
            work()

    def rest(self) -> None:
        """Nothing is handled for it for now: it waits, or its answer has begun."""
        if self.suspect is not None:
            self.suspect.rest()


def context_of(request: Request) -> RequestContext:
    context: RequestContext = request.scope["context"]
    return context


def read_context(
    headers: Mapping[bytes, bytes], timers: Timers, clocks: HostClocks | None = None
) -> RequestContext:
    """Take what nginx sets; where it is missing or malformed, a fresh id, now, and ``local``.
    ``clocks``: of the cluster, where a front says when the request came by its own."""
    request_id = headers.get(b"x-request-id", b"").decode("latin-1")
    if not _ID.fullmatch(request_id):
        request_id = secrets.token_hex(16)
    arrived_at = _arrival(headers, clocks)
    address = headers.get(b"x-real-ip", b"local").decode("latin-1")[:64]
    again = headers.get(b"x-again", b"").decode("latin-1")
    again = again if _TURN.fullmatch(again) else ""
    return RequestContext(request_id, arrived_at, address, again, headers, timers=timers)


def _arrival(headers: Mapping[bytes, bytes], clocks: HostClocks | None) -> float:
    now = time.time()
    try:
        at = float(headers.get(b"x-request-start", b""))
    except ValueError:
        return now
    if clocks is not None and (front := headers.get(b"x-front", b"").decode("latin-1")):
        at = clocks.here(at, front)
    return at if math.isfinite(at) and now - _MAX_AGE_S < at < now else now


class RequestContexts:
    """Nothing above it answers, so no error leaves without the envelope."""

    def __init__(
        self,
        app: ASGIApp,
        worker: str,
        metrics: Metrics,
        traces: Traces,
        clocks: HostClocks | None = None,
    ) -> None:
        self._app = app
        self._clocks = clocks
        self._worker = b"x-worker", worker.encode()
        self._metrics = metrics
        self._traces = traces
        self._timers = Timers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = scope["context"] = read_context(
            dict(scope["headers"]), self._timers, self._clocks
        )
        if self._traces.on and scope["path"] not in QUIET:
            above = context.header(b"traceparent") or None
            at = context.arrived_at
            context.trace = self._traces.begin("request", at, context.id, above)
        headers = [(b"x-request-id", context.id.encode()), self._worker]
        answer = _Answer(send, headers, context)
        began = time.monotonic()
        try:
            await self._app(scope, receive, answer.send)
        except Exception as error:
            log.failure("request failed", error, request_id=context.id)
            if answer.status:
                raise  # the server cuts the connection: a half answer must not look whole
            await answers.of_bug()(scope, receive, answer.send)
        finally:
            self._account(scope, context, answer, time.monotonic() - began)
            context.end()

    def _account(
        self, scope: Scope, context: RequestContext, answer: "_Answer", seconds: float
    ) -> None:
        if scope["path"] in QUIET:
            return
        # The route's template, so that no client can add label values.
        route = getattr(scope.get("route"), "path", "none")
        status = context.notes.get("status", answer.status)
        self._metrics.answered(route, status, seconds)
        fields: dict[str, log.Value] = {
            "request_id": context.id,
            "method": scope["method"][:20],
            "path": scope["path"][:200],
            "status": answer.status,
            "ms": round(seconds * 1000, 1),
            "bytes": answer.body_bytes,
            "client": context.key,
            **context.notes,
        }
        log.event("request", **fields)
        if self._traces.on:
            context.trace.end(
                {
                    "http.request.method": scope["method"][:20],
                    "http.route": route,
                    "http.response.status_code": int(status or 0),
                }
            )


class _Answer:
    """Adds the headers that every answer has and remembers what was sent."""

    def __init__(
        self, send: Send, headers: list[tuple[bytes, bytes]], context: RequestContext
    ) -> None:
        self._send = send
        self._headers = headers
        self._context = context
        self.status = 0
        self.body_bytes = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._context.rest()  # nginx sends it nowhere else from here on
            message["headers"] = [*message["headers"], *self._headers]
        else:
            self.body_bytes += len(message.get("body", b""))
        await self._send(message)
