"""What Prometheus reads from a worker. Names and units follow its conventions.

Handlers say what happened (``answered``, ``drew``, ``queued``); what the engine counts itself is
read when somebody asks. No label takes a value that a client can choose.
"""

import collections
import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from worker.bounds import LATENCY_BUCKETS_S
from worker.coordination.heartbeat import Heartbeat
from worker.engine.state import EngineState

_PICTURES = (1, 2, 3, 4, 6, 8, 12, 16, 32)
_SIDES = (256, 512, 768, 1024, 1536, 2048)
LARGER = "larger"


@dataclass(frozen=True)
class Reading:
    """A worker at one moment; None and empty where it does not know yet."""

    ready: bool
    encoding: int
    """Pictures being encoded or waiting for it."""
    build: Mapping[str, str]
    """Version, model, device …: constant while the process lives."""
    heartbeat: Heartbeat | None = None
    engine: EngineState | None = None
    device_memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes by kind: allocated, reserved, limit."""
    job_items: int = 0
    database_failures: int = 0
    usage_waiting_bytes: int = 0
    """Of entries that are not in the ledger yet."""
    keys_age_s: float | None = None
    """Since the keys were last confirmed; None where none are asked for."""
    task_restarts: Mapping[str, int] = field(default_factory=dict)
    """How often each background task died and was started again."""
    log_lines_lost: int = 0
    audit: "AuditReading | None" = None
    """None where there is no audit log."""


@dataclass(frozen=True)
class AuditReading:
    """See the fields of ``Audit``."""

    bytes: int
    lost: int
    deleted_early: int


class Metrics:
    """One registry of its own: importing this module registers nothing anywhere."""

    def __init__(self, read: Callable[[], Reading]) -> None:
        self.registry = registry = CollectorRegistry()
        registry.register(_Happened(self))
        self.pictures_lost = Counter(
            "zimage_pictures_lost",
            "Pictures that were answered but not kept: disk or database were away too long.",
            registry=registry,
        )
        self.usage_lost = Counter(
            "zimage_usage_lost",
            "Entries of the ledger that found room neither on disk nor in memory.",
            registry=registry,
        )
        self.denied = Counter(
            "zimage_http_requests_denied",
            "Requests without a good key, by what was wrong.",
            ("reason",),
            registry=self.registry,
        )
        self.strikes = Counter(
            "zimage_strikes",
            "Requests seen in the step of a worker that died, by what was done with them.",
            ("action",),
            registry=registry,
        )
        for reason in ("wrong_key", "disabled", "expired", "no_key", "no_bearer"):
            self.denied.labels(reason)
        for action in ("inherited", "alone", "refused", "too_slow"):
            self.strikes.labels(action)  # from zero on: a first strike is an increase
        self.job_items = Counter(
            "zimage_job_items",
            "Items of jobs that this worker ended, by result: done or failed.",
            ("result",),
            registry=registry,
        )
        for result in ("done", "failed"):
            self.job_items.labels(result)
        self.requests = collections.Counter[tuple[str, str]]()
        """By route and status."""
        self.request_s = defaultdict[str, Durations](Durations)
        """By route."""
        self.queue_s = Durations()
        self.images = collections.Counter[str]()
        """By format."""
        self.encode_s = defaultdict[str, Durations](Durations)
        """By format."""
        self.inference_s = {size: Durations() for size in (*map(str, _SIDES), LARGER)}
        self.pixels = 0
        self.drawn = 0
        """Pictures since the start."""
        registry.register(_Readings(read))
        ProcessCollector(pid=os.getpid, registry=registry)

    def answered(self, route: str, status: object, seconds: float) -> None:
        """A request was answered with an HTTP ``status``. ``route`` is a template, never a path."""
        self.requests[route, str(status)] += 1
        self.request_s[route].add(seconds)

    def queued(self, seconds: float) -> None:
        """A request has waited so long for its first step."""
        self.queue_s.add(seconds)

    def drew(self, pixels: int, inference_s: float, image_format: str, encode_s: float) -> None:
        """A picture is drawn and is a file."""
        self.drawn += 1
        self.images[image_format] += 1
        self.encode_s[image_format].add(encode_s)
        self.pixels += pixels
        self.inference_s[size_class(pixels)].add(inference_s)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)


class Durations:
    """How many were how long, by ``LATENCY_BUCKETS_S``. Every request adds some, on the event loop;
    the library's own histogram, which takes locks, takes several times as long."""

    def __init__(self) -> None:
        self._counts = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """One was so long."""
        self._counts[bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        self.sum_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Most seconds, and how many took no longer."""
        bounds = [*(str(float(most)) for most in LATENCY_BUCKETS_S), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self._counts)), strict=True))


def size_class(pixels: int) -> str:
    """Side of the smallest square of a few that has ``pixels``, or ``larger``."""
    return next((str(side) for side in _SIDES if pixels <= side * side), LARGER)


class _Happened(Collector):
    """What handlers said."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        told = self._metrics
        text = "Requests answered, by route and status (499: the client left)."
        yield _counts("http_requests", text, ("route", "code"), told.requests.items())
        text = "From the first byte of a request to the last of its answer."
        yield _durations("http_request_duration", text, "route", told.request_s)
        images = [([image_format], count) for image_format, count in told.images.items()]
        yield _counts("images_drawn", "Pictures drawn.", ("format",), images)
        yield _counts("pixels_drawn", "Pixels drawn.", (), [([], told.pixels)])
        text = "From a request's arrival to the first step of its first picture."
        yield _durations("queue_duration", text, None, {"": told.queue_s})
        text = (
            "From the first step of a picture to its pixels. size: the side of the smallest of "
            "some squares that has as many pixels."
        )
        yield _durations("inference_duration", text, "size", told.inference_s)
        text = "From pixels to a file and its base64, waiting included."
        yield _durations("encode_duration", text, "format", told.encode_s)


def _counts(
    name: str, text: str, labels: tuple[str, ...], counts: Iterable[tuple[Sequence[str], int]]
) -> Metric:
    family = CounterMetricFamily(f"zimage_{name}", text, labels=labels)
    for values, count in counts:
        family.add_metric(values, count)
    return family


def _durations(name: str, text: str, label: str | None, series: Mapping[str, Durations]) -> Metric:
    labels = () if label is None else (label,)
    family = HistogramMetricFamily(f"zimage_{name}_seconds", text, labels=labels)
    for value, durations in series.items():
        family.add_metric([value][: len(labels)], durations.buckets(), durations.sum_s)
    return family


class _Readings(Collector):
    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        reading = self._read()
        yield InfoMetricFamily("zimage_build", "What runs here.", value=dict(reading.build))
        yield _gauge("ready", "1 where this worker takes work now.", reading.ready)
        yield _gauge("encoding_pictures", "Pictures being encoded or waiting.", reading.encoding)
        yield _gauge("job_items_held", "Items of jobs in this worker's hands.", reading.job_items)
        failures = "Calls that the database did not answer: locked, full, missing or too slow."
        count = reading.database_failures
        yield CounterMetricFamily("zimage_database_failures", failures, value=count)
        usage_text = "Usage that is on its way to the database."
        yield _gauge("usage_waiting_bytes", usage_text, reading.usage_waiting_bytes)
        if reading.keys_age_s is not None:
            age_text = "Since the database last confirmed the keys in memory."
            yield _gauge("keys_age_seconds", age_text, reading.keys_age_s)
        yield _restarts(reading.task_restarts)
        lost_text, lost = "Lines of the log that nobody took in time.", reading.log_lines_lost
        yield CounterMetricFamily("zimage_log_lines_lost", lost_text, value=lost)
        if reading.audit is not None:
            yield from _of_audit(reading.audit)
        for kind, value in reading.device_memory.items():
            yield _gauge(f"device_memory_{kind}_bytes", _MEMORY[kind], value)
        if reading.heartbeat is not None:
            yield from _of_beat(reading.heartbeat)
        if reading.engine is not None:
            yield from _of_engine(reading.engine)


_MEMORY = {
    "allocated": "Memory of the device in use by weights and pictures.",
    "reserved": "Memory of the device that this process keeps, in use or not.",
    "limit": "Memory of the device that weights and pictures may use.",
}
_TOTALS = (
    ("out_of_memory", "out_of_memory", "Calls that found no room on the device."),
    ("busy_seconds", "busy_s", "Time in which there was something to draw."),
    ("device_seconds", "device_s", "Of that, time inside the pipeline."),
)
_OUTCOMES = ("done", "failed", "cancelled", "handed_back")


def _of_beat(heartbeat: Heartbeat) -> Iterator[Metric]:
    yield _gauge(
        "heartbeat_age_seconds", "Since the present phase or step began.", heartbeat.age_s()
    )
    yield _gauge("heartbeat_allowance_seconds", "How long it may last.", heartbeat.allowance_s)


def _of_engine(state: EngineState) -> Iterator[Metric]:
    yield _gauge("queued_requests", "Requests that wait for their first step.", state.queued)
    yield _gauge("running_requests", "Requests being drawn.", state.running)
    wait_text = "What a request arriving now would wait."
    yield _gauge("predicted_wait_seconds", wait_text, state.predicted_wait_s)
    for name, key, text in _TOTALS:
        yield CounterMetricFamily(f"zimage_{name}", text, value=state.totals[key])
    outcomes = CounterMetricFamily(
        "zimage_engine_requests", "Requests that left the engine.", labels=("outcome",)
    )
    for outcome in _OUTCOMES:
        outcomes.add_metric((outcome,), state.totals[f"requests_{outcome}"])
    yield outcomes
    yield _batches(state.batches)
    if state.caption_lookups is not None:
        yield _captions(*state.caption_lookups)


def _of_audit(audit: AuditReading) -> Iterator[Metric]:
    yield _gauge("audit_bytes", "Audit log of all workers when last looked at.", audit.bytes)
    text = "Lines of the audit log that were not written."
    yield CounterMetricFamily("zimage_audit_lines_lost", text, value=audit.lost)
    text = "Audit log deleted for lack of room before it was as old as it may become."
    yield CounterMetricFamily("zimage_audit_deleted_early_bytes", text, value=audit.deleted_early)


def _restarts(restarts: Mapping[str, int]) -> Metric:
    text = "Background tasks that died and were started again."
    counted = CounterMetricFamily("zimage_task_restarts", text, labels=("task",))
    for task, count in restarts.items():
        counted.add_metric((task,), count)
    return counted


def _batches(batches: Mapping[int, int]) -> Metric:
    buckets = [
        (str(float(most)), float(sum(steps for n, steps in batches.items() if n <= most)))
        for most in _PICTURES
    ]
    return HistogramMetricFamily(
        "zimage_batch_pictures",
        "Pictures that shared a denoising step; their count is the steps taken.",
        buckets=[*buckets, ("+Inf", float(sum(batches.values())))],
        sum_value=float(sum(n * steps for n, steps in batches.items())),
    )


def _captions(hits: int, misses: int) -> Metric:
    text = "Prompts looked up in the cache of embeddings."
    lookups = CounterMetricFamily("zimage_caption_lookups", text, labels=("result",))
    lookups.add_metric(("hit",), hits)
    lookups.add_metric(("miss",), misses)
    return lookups


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"zimage_{name}", text, value=float(value))
