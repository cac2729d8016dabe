"""Traces for a collector that speaks OTLP over HTTP. Off unless ``[traces]`` names one.

A request's root span begins when nginx took it and ends with its answer. Under it stand ``admit``,
and for each picture ``queue``, ``draw``, ``encode``, and what is written down: ``record``. Without
a ``traceparent`` of its sender, the trace has the request's id, so all its replays are one trace.
Items of a job belong to the trace of the request that made it, whichever worker draws them.

Spans wait in a bounded queue for a thread of OpenTelemetry's; what finds it full is dropped. With
traces off nothing of OpenTelemetry is imported and every call here does nothing.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from worker import log
from worker.engine.request import Drawn

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span

MAX_WAITING_SPANS = 4096
_SEND_EVERY_S = 1.0
_TIMEOUT_S = 5.0
_NOTHING = nullcontext()


class Trace:
    """One request's, or one item's: as it is where traces are off."""

    traceparent: str | None = None
    """What is handed on, so that others' spans stand under this one."""

    def timed(self, name: str) -> AbstractContextManager[None]:
        """A span that lasts as long as what is inside."""
        return _NOTHING

    def drew(self, one: Drawn, encode_s: float) -> None:
        """A picture has become a file just now, which took ``encode_s``."""

    def end(self, about: Mapping[str, str | int]) -> None:
        """It is over; ``about`` by OpenTelemetry's names."""


OFF = Trace()


class Traces:
    """Where traces begin: as it is where they are off."""

    on = False

    def begin(self, name: str, at: float, request_id: str, parent: str | None) -> Trace:
        """A root span called ``name`` since ``at`` (seconds since the epoch). ``parent``: a
        ``traceparent`` that it stands under; one that is malformed counts as none."""
        return OFF

    def close(self, timeout_s: float) -> None:
        """Send what waits, for at most ``timeout_s``. Blocks."""


def traces_to(endpoint: str, share: float, worker: str, version: str) -> Traces:
    """Traces that go to the collector at ``endpoint``; off where that is empty or OpenTelemetry is
    not installed, which is logged. ``share`` is how many of the traces that begin here are sent,
    from 0 to 1; a sender who has decided for his own decides here too."""
    if not endpoint:
        return Traces()
    try:
        return _Otlp(endpoint, share, worker, version)
    except ImportError as error:
        remedy = "install the extra: pip install 'zimage-cluster[otel]'"
        log.failure("traces are off", error, remedy=remedy)
        return Traces()


class _Otlp(Traces):
    on = True

    def __init__(self, endpoint: str, share: float, worker: str, version: str) -> None:
        # Here and not above: whoever has traces off need not have it, nor wait for its import.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

        about = {
            "service.name": "zimage",
            "service.instance.id": worker,
            "service.version": version,
        }
        self._ids = _ids()
        self._provider: TracerProvider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)),
            resource=Resource(about),
            shutdown_on_exit=False,
            id_generator=self._ids,
            span_limits=SpanLimits(max_span_attributes=32, max_attribute_length=200),
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT_S),
                max_queue_size=MAX_WAITING_SPANS,
                max_export_batch_size=MAX_WAITING_SPANS // 8,
                schedule_delay_millis=_SEND_EVERY_S * 1000,
                export_timeout_millis=_TIMEOUT_S * 1000,
            )
        )
        self._tracer = self._provider.get_tracer("zimage", version)

    def begin(self, name: str, at: float, request_id: str, parent: str | None) -> Trace:
        from opentelemetry.context import Context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {} if parent is None else {"traceparent": parent}
        above = TraceContextTextMapPropagator().extract(carrier, Context())
        self._ids.next_trace_id = int(request_id, 16) if _is_trace_id(request_id) else None
        span = self._tracer.start_span(name, above, start_time=_ns(at))
        return _OtlpTrace(self, span) if span.is_recording() else _Unsampled(span)

    def span(self, name: str, above: "Context", began: float, ended: float, **about: Any) -> None:
        """One that is over."""
        span = self._tracer.start_span(name, above, start_time=_ns(began), attributes=about)
        span.end(_ns(ended))

    def close(self, timeout_s: float) -> None:
        # In a thread: it waits for a collector that does not answer.
        ending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        ending.start()
        ending.join(timeout_s)


class _Unsampled(Trace):
    """Not sent; what is handed on says so."""

    def __init__(self, span: Any) -> None:
        self.traceparent = _traceparent(span)


class _OtlpTrace(Trace):
    def __init__(self, traces: _Otlp, span: "Span | Any") -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        self._traces = traces
        self._span = span
        self._here = set_span_in_context(span, Context())
        self.traceparent = _traceparent(span)

    def timed(self, name: str) -> AbstractContextManager[None]:
        return self._timed(name)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.time()
        try:
            yield
        finally:
            self._traces.span(name, self._here, began, time.time())

    def drew(self, one: Drawn, encode_s: float) -> None:
        # From its end: the thread that draws tells how long each part took.
        at = {"image_index": one.image_index}
        spec = one.spec
        encode = time.time()
        draw = encode - encode_s
        queue = draw - one.inference_ms / 1000
        since = queue - one.queue_ms / 1000
        how = spec.parameters
        size = {"width": how.width, "height": how.height, "steps": how.steps}
        self._traces.span("queue", self._here, since, queue, **at)
        self._traces.span("draw", self._here, queue, draw, **at, **size, batch=one.batch_size)
        self._traces.span("encode", self._here, draw, encode, **at)

    def end(self, about: Mapping[str, str | int]) -> None:
        self._span.set_attributes(dict(about))
        self._span.end()


def _ids() -> Any:
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):
        """The trace of a request is called as the request. For one thread: the event loop."""

        next_trace_id: int | None = None

        def generate_trace_id(self) -> int:
            return self.next_trace_id or super().generate_trace_id()

    return Ids()


def _traceparent(span: Any) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def _is_trace_id(text: str) -> bool:
    return len(text) == 32 and all(c in "0123456789abcdef" for c in text)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
