"""What Prometheus reads of a front's hosts: one series a host."""

from collections.abc import Callable, Iterable
from typing import get_args

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from deploy.guard.front import Front
from deploy.guard.host_judge import HostState
from deploy.guard.host_watch import HostWatch


class HostMetrics(Collector):
    def __init__(self, front: Front) -> None:
        self._front = front

    def collect(self) -> Iterable[Metric]:
        watches = self._front.watches
        for name, text, value in _GAUGES:
            family = GaugeMetricFamily(f"zimage_host_{name}", text, labels=("host",))
            for watch in watches:
                family.add_metric((watch.row.id,), value(watch))
            yield family
        yield _states(watches)
        yield _ejections(watches)
        endings = CounterMetricFamily(
            "zimage_host_link_endings", "Links ended, for the host was lost.", labels=("host",)
        )
        for watch in watches:
            endings.add_metric((watch.row.id,), watch.endings)
        yield endings


def _states(watches: Iterable[HostWatch]) -> Metric:
    labels = ("host", "state")
    family = GaugeMetricFamily("zimage_host_state", "1 for the present one.", labels=labels)
    for watch in watches:
        for state in get_args(HostState):
            family.add_metric((watch.row.id, state), watch.state == state)
    return family


def _ejections(watches: Iterable[HostWatch]) -> Metric:
    family = CounterMetricFamily(
        "zimage_host_ejections",
        "Times that a host was taken out of the pool.",
        labels=("host", "reason"),
    )
    for watch in watches:
        for state in get_args(HostState):
            family.add_metric((watch.row.id, state), watch.ejections[state])
    return family


_GAUGES: tuple[tuple[str, str, Callable[[HostWatch], float]], ...] = (
    ("in_pool", "1 while requests go there.", lambda w: w.reading.is_open),
    ("workers", "Workers that are configured there.", lambda w: w.row.workers),
    ("workers_ready", "Those that take requests.", lambda w: w.said.ready),
    ("silent_seconds", "Since it last answered.", lambda w: w.silent_s),
    ("predicted_wait_seconds", "What it would let a newcomer wait.", lambda w: w.said.wait_s or 0),
)
