"""What Prometheus reads from a worker. Names and units follow its conventions."""

import os
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300)

Gauges = Callable[[], Mapping[str, tuple[str, float]]]
"""Reads the present values: name → (help, value)."""


class Metrics:
    """One registry of its own: importing this module registers nothing anywhere."""

    def __init__(self, gauges: Gauges) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "zimage_http_requests",
            "Requests answered, by route and status (499: the client left).",
            ("route", "status"),
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "zimage_http_request_duration_seconds",
            "From the first byte of a request to the last of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.images = Counter(
            "zimage_images_drawn", "Pictures drawn.", ("format",), registry=self.registry
        )
        self.pixels = Counter("zimage_pixels_drawn", "Pixels drawn.", registry=self.registry)
        self.queue_seconds = Histogram(
            "zimage_queue_duration_seconds",
            "From a request's arrival to the first step of its first picture.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.inference_seconds = Histogram(
            "zimage_inference_duration_seconds",
            "From the first step of a picture to its pixels.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.encode_seconds = Histogram(
            "zimage_encode_duration_seconds",
            "From pixels to a file and its base64, waiting included.",
            ("format",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.strikes = Counter(
            "zimage_strikes",
            "Requests seen in the step of a worker that died, by what was done with them.",
            ("action",),
            registry=self.registry,
        )
        self.registry.register(_GaugeCollector(gauges))
        ProcessCollector(pid=os.getpid, registry=self.registry)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)


class _GaugeCollector(Collector):
    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        for name, (text, value) in self._gauges().items():
            yield GaugeMetricFamily(f"zimage_{name}", text, value=value)
