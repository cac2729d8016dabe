"""What Prometheus reads of a cluster: its hosts as rows, and where to ask each. Pure.

Each machine knows all hosts, so one of them is enough for the first.
"""

from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from deploy.cluster.differences import differences
from worker.storage.hosts import Host

_GAUGES: dict[str, tuple[str, Callable[[Host, float], float]]] = {
    "skew_seconds": ("Its clock less the database's.", lambda host, _: host.skew_s),
    "silent_seconds": ("Since it wrote its row.", lambda host, at: at - host.at),
    "lost": ("1 while no front hears it.", lambda host, _: host.lost_at is not None),
    "workers": ("Workers that are configured.", lambda host, _: host.workers),
    "ready": ("Those of them in its pool.", lambda host, _: host.ready),
    "queued": ("Pictures that wait there.", lambda host, _: host.queued),
    "running": ("Pictures that are drawn there.", lambda host, _: host.running),
    "wait_seconds": ("What a newcomer would wait.", lambda host, _: host.wait_s),
}
_PREFIX = "zimage_cluster_host"
_MOST_DIFFERENCES = 10


def metrics(rows: Sequence[Host], at: float, now: float) -> str:
    """In Prometheus' text format. ``at`` is by the database's clock, ``now`` by this machine's."""
    registry = CollectorRegistry()
    here = [host for host in rows if host.wanted != "removed"]
    for name, (text, value) in _GAUGES.items():
        gauge = Gauge(f"{_PREFIX}_{name}", text, ["host"], registry=registry)
        for host in here:
            gauge.labels(host.id).set(value(host, at))
    labels = ["host", "role", "version", "state", "wanted"]
    info = Gauge(f"{_PREFIX}_info", "1; what it is.", labels, registry=registry)
    for host in here:
        info.labels(host.id, host.role, host.version, host.state, host.wanted).set(1)
    differ = "zimage_cluster_models_differ"
    text = "1 for what hosts have under one name and is not the same."
    differing = Gauge(differ, text, ["kind", "name"], registry=registry)
    for each in differences([vars(host) for host in rows])[:_MOST_DIFFERENCES]:
        differing.labels(each.kind, each.name).set(1)
    written = "zimage_cluster_written_timestamp_seconds"
    Gauge(written, "When the database was last heard.", registry=registry).set(now)
    return generate_latest(registry).decode()


def targets(rows: Sequence[Host], own: str) -> list[dict[str, Any]]:
    """For ``http_sd``: guard and workers of each host but ``own``, by the address that fronts use.

    Label ``cell`` is the host's name, and ``job`` that of a machine's own scrapes, so that the same
    alerts hold for all.
    """
    others = [host for host in rows if host.wanted != "removed" and host.draws and host.id != own]
    return [
        {"targets": [host.address], "labels": {"cell": host.id, **labels}}
        for host in others
        for labels in (
            {"job": "zimage-guard", "__metrics_path__": "/guard/metrics"},
            *(
                {
                    "job": "zimage-workers",
                    "worker": name,
                    "__metrics_path__": f"/workers/{name}/metrics",
                }
                for name in host.facts.get("workers", ())
            ),
        )
    ]
