"""What Prometheus reads from the guard. Read when asked: guarding itself only counts integers."""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import cast, get_args

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from deploy.guard.gpus import Gpu, Gpus
from deploy.guard.journal import Journal
from deploy.guard.judge import Cause, State
from deploy.guard.watch import FAULTS, Watch

_LAG_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

Field = tuple[str, str, Callable[[Watch], float]]
"""Name, help, value."""


class GuardMetrics:
    """``registry`` also takes what others count (traffic)."""

    def __init__(
        self, watches: Sequence[Watch], journal: Journal, gpus: Gpus, var_dir: Path
    ) -> None:
        self.registry = CollectorRegistry()
        self.lag_seconds = Histogram(
            "zimage_guard_lag_seconds",
            "How late the guard came to judge, of ten times a second.",
            buckets=_LAG_S,
            registry=self.registry,
        )
        self.registry.register(_Cell(watches, journal, gpus, var_dir))
        ProcessCollector(pid=os.getpid, registry=self.registry)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)


class _Cell(Collector):
    def __init__(
        self, watches: Sequence[Watch], journal: Journal, gpus: Gpus, var_dir: Path
    ) -> None:
        self._watches, self._journal, self._gpus, self._var_dir = watches, journal, gpus, var_dir

    def collect(self) -> Iterable[Metric]:
        build = {"version": metadata.version("zimage-cluster")}
        yield InfoMetricFamily("zimage_guard_build", "What runs here.", value=build)
        members = sum(watch.gate.is_open for watch in self._watches)
        yield GaugeMetricFamily("zimage_pool_members", "Workers in the pool.", members)
        yield GaugeMetricFamily("zimage_pool_workers", "Workers of the cell.", len(self._watches))
        yield from self._models()
        yield from self._workers()
        yield self._alarms()
        yield from self._disk()
        yield from self._spool()
        yield from self._cards()

    def _models(self) -> Iterator[Metric]:
        """Of a cell that has several."""
        told = {w.model: [o for o in self._watches if o.model == w.model] for w in self._watches}
        if told.keys() <= {""}:
            return
        counts: dict[str, tuple[str, Callable[[list[Watch]], int]]] = {
            "members": (
                "Workers in the pool, by model.",
                lambda own: sum(watch.gate.is_open for watch in own),
            ),
            "workers": ("Workers of the cell, by model.", len),
        }
        for name, (text, count) in counts.items():
            family = GaugeMetricFamily(f"zimage_model_{name}", text, labels=("model",))
            for model, own in told.items():
                family.add_metric((model,), count(own))
            yield family

    def _workers(self) -> Iterator[Metric]:
        for name, text, value in _GAUGES:
            family = GaugeMetricFamily(f"zimage_worker_{name}", text, labels=("worker",))
            for watch in self._watches:
                family.add_metric((watch.name,), value(watch))
            yield family
        yield self._info()
        yield self._states()
        yield self._restarts()
        yield self._counted(
            "zimage_worker_faults",
            "Ends that nobody wanted: killed by the guard, or died.",
            "kind",
            FAULTS,
            lambda watch, kind: watch.faults[kind],
        )
        yield self._counted(
            "zimage_pool_ejections",
            "Times that a worker was taken out of the pool.",
            "reason",
            get_args(Cause),
            lambda watch, cause: watch.ejections[cast(Cause, cause)],
        )

    def _info(self) -> Metric:
        labels = ("worker", "device", "device_name")
        family = GaugeMetricFamily(
            "zimage_worker_info", "Who draws where; always 1.", labels=labels
        )
        for watch in self._watches:
            family.add_metric((watch.name, watch.device, watch.device_name), 1)
        return family

    def _states(self) -> Metric:
        labels = ("worker", "state")
        family = GaugeMetricFamily("zimage_worker_state", "1 for the present one.", labels=labels)
        for watch in self._watches:
            for state in get_args(State):
                family.add_metric((watch.name, state), watch.state == state)
        return family

    def _restarts(self) -> Metric:
        text = "Processes that came after another one, wanted or not."
        family = CounterMetricFamily("zimage_worker_restarts", text, labels=("worker",))
        for watch in self._watches:
            family.add_metric((watch.name,), watch.restarts)
        return family

    def _counted(
        self,
        name: str,
        text: str,
        label: str,
        values: Iterable[str],
        count: Callable[[Watch, str], int],
    ) -> Metric:
        family = CounterMetricFamily(name, text, labels=("worker", label))
        for watch in self._watches:
            for value in values:
                family.add_metric((watch.name, value), count(watch, value))
        return family

    def _alarms(self) -> Metric:
        labels = ("alarm", "worker")
        family = GaugeMetricFamily("zimage_alarm", "The guard's alarms that are on.", labels=labels)
        for alarm in self._journal.alarms:
            family.add_metric((alarm["name"], alarm["worker"] or ""), 1)
        return family

    def _disk(self) -> Iterator[Metric]:
        try:
            usage = shutil.disk_usage(self._var_dir)
        except OSError:
            return
        yield GaugeMetricFamily("zimage_disk_free_bytes", "Free where var_dir is.", usage.free)
        yield GaugeMetricFamily("zimage_disk_size_bytes", "Size of that disk.", usage.total)

    def _spool(self) -> Iterator[Metric]:
        """Of a cell whose pictures go into a bucket, once one had to wait."""
        folder = self._var_dir / "spool" / "pictures"
        if not folder.is_dir():
            return
        ages = []
        for path in folder.glob("*/*"):
            with suppress(FileNotFoundError):  # brought to the store at this moment
                ages.append(time.time() - path.stat().st_mtime)
        yield GaugeMetricFamily("zimage_spool_files", "Pictures waiting for the store.", len(ages))
        yield GaugeMetricFamily(
            "zimage_spool_oldest_seconds", "How long the first of them waits.", max(ages, default=0)
        )

    def _cards(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("zimage_gpu_up", "1 while the GPU answers.", labels=("gpu",))
        seen = {device: self._gpus.get(device) for device in self._gpus.devices}
        for device, gpu in seen.items():
            up.add_metric((device,), gpu is not None)
        yield up
        for name, text, value in _GPU:
            family = GaugeMetricFamily(f"zimage_gpu_{name}", text, labels=("gpu",))
            for device, gpu in seen.items():
                if gpu is not None and (number := value(gpu)) is not None:
                    family.add_metric((device,), number)
            yield family


_GAUGES: tuple[Field, ...] = (
    ("in_pool", "1 while its gate is open.", lambda w: w.gate.is_open),
    ("drain_wanted", "1 while an operator wants it out.", lambda w: w.drain_wanted),
    (
        "heartbeat_age_seconds",
        "Since its present phase or step began; 0 without a process.",
        lambda w: w.heartbeat.age_s() if w.heartbeat and w.process else 0.0,
    ),
    (
        "heartbeat_allowance_seconds",
        "How long that may last.",
        lambda w: w.heartbeat.allowance_s if w.heartbeat and w.process else 0.0,
    ),
    ("predicted_wait_seconds", "What it would let a newcomer wait.", lambda w: w.predicted_wait_s),
    ("resident_memory_bytes", "Memory of its process.", lambda w: w.resident_bytes()),
)

_GPU: tuple[tuple[str, str, Callable[[Gpu], float | None]], ...] = (
    ("memory_used_bytes", "Memory in use, by whomever.", lambda g: g.memory_used_bytes),
    ("memory_size_bytes", "Memory that it has.", lambda g: g.memory_bytes),
    ("utilization_ratio", "Share of time in which it computed.", lambda g: g.utilization_ratio),
    ("temperature_celsius", "Temperature of the chip.", lambda g: g.temperature_c),
)
