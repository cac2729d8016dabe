"""The Grafana dashboard: a table of panels in, Grafana's classic JSON out. Pure."""

import json
from dataclasses import dataclass
from typing import Any

from worker.bounds import DRAWINGS

_DRAW = f'cell=~"$cell", route=~"{"|".join(DRAWINGS)}"'
_CELL = 'cell=~"$cell"'
_WIDE, _HIGH = 8, 7
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """``queries``: PromQL and legend. ``unit``: Grafana's name of it."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    stacked: bool = False
    description: str = ""


def dashboard(*, cluster: bool = False) -> str:
    """JSON to import, or to lie in a provisioned folder. ``cluster``: the hosts come first."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in (*(HOST_ROWS if cluster else ()), *ROWS):
        panels.append(_row(len(panels), title, top))
        top += 1
        for at, panel in enumerate(row):
            line, column = divmod(at, 24 // _WIDE)
            panels.append(_panel(len(panels), panel, column * _WIDE, top + line * _HIGH))
        top += -(-len(row) // (24 // _WIDE)) * _HIGH
    return json.dumps({**_FRAME, "panels": panels}, indent=2) + "\n"


def _quantile(q: float, metric: str, by: str = "", where: str = _CELL) -> str:
    labels = f"le, {by}" if by else "le"
    rate = f"rate({metric}_bucket{{{where}}}[$__rate_interval])"
    return f"histogram_quantile({q:g}, sum by ({labels}) ({rate}))"


def _rate(metric: str, by: str = "", where: str = _CELL) -> str:
    return f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))"


def _by_worker(metric: str) -> tuple[tuple[str, str], ...]:
    return ((f"{metric}{{{_CELL}}}", "{{worker}}"),)


_FRONT = "zimage_front_request_duration_seconds"
_LOOKUPS = "zimage_caption_lookups_total"


def _by_host(name: str) -> tuple[tuple[str, str], ...]:
    return ((f"max by (host) (zimage_cluster_host_{name})", "{{host}}"),)


HOST_ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Hosts",
        (
            Panel("Workers in the pool, by host", "none", _by_host("ready"), stacked=True),
            Panel("Pictures that are drawn, by host", "none", _by_host("running"), stacked=True),
            Panel("Pictures that wait, by host", "none", _by_host("queued"), stacked=True),
            Panel("What a newcomer would wait, by host", "s", _by_host("wait_seconds")),
            Panel("Clocks less the database's", "s", _by_host("skew_seconds")),
            Panel(
                "Versions",
                "none",
                (
                    (
                        "count by (version) (max by (host, version) (zimage_cluster_host_info))",
                        "{{version}}",
                    ),
                ),
                stacked=True,
                description="Hosts that run each",
            ),
        ),
    ),
)
"""Of a cluster. They have no cell: each of its machines knows them all."""

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "What people get",
        (
            Panel(
                "Drawings by status",
                "reqps",
                ((_rate("zimage_front_requests_total", "code", _DRAW), "{{code}}"),),
                stacked=True,
            ),
            Panel(
                "Time to an answer",
                "s",
                tuple(
                    (_quantile(q, _FRONT, "", _DRAW), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)
                ),
            ),
            Panel(
                "Pictures",
                "short",
                ((f"60 * {_rate('zimage_images_drawn_total', 'format')}", "{{format}}, a minute"),),
                stacked=True,
            ),
            Panel(
                "Predicted wait of a newcomer",
                "s",
                _by_worker("zimage_worker_predicted_wait_seconds"),
            ),
            Panel(
                "Time in the queue",
                "s",
                tuple(
                    (_quantile(q, "zimage_queue_duration_seconds"), f"p{q * 100:g}")
                    for q in (0.5, 0.95)
                ),
            ),
            Panel(
                "Drawn again elsewhere",
                "short",
                ((f"60 * {_rate('zimage_front_replays_total')}", "replays, a minute"),),
            ),
        ),
    ),
    (
        "Pool",
        (
            Panel(
                "In the pool",
                "none",
                _by_worker("zimage_worker_in_pool"),
                kind="state-timeline",
                description="1 in, 0 out",
            ),
            Panel(
                "Taken out, by reason",
                "short",
                (
                    (
                        "sum by (worker, reason) (increase(zimage_pool_ejections_total"
                        f"{{{_CELL}}}[$__rate_interval])) > 0",
                        "{{worker}} {{reason}}",
                    ),
                ),
            ),
            Panel(
                "Faults and restarts",
                "short",
                (
                    (
                        "sum by (worker, kind) (increase(zimage_worker_faults_total"
                        f"{{{_CELL}}}[$__rate_interval]))",
                        "{{worker}} {{kind}}",
                    ),
                    (
                        "sum by (worker) (increase(zimage_worker_restarts_total"
                        f"{{{_CELL}}}[$__rate_interval]))",
                        "{{worker}} restarted",
                    ),
                ),
            ),
            Panel(
                "Members",
                "short",
                (
                    (f"zimage_pool_members{{{_CELL}}}", "in the pool"),
                    (f"zimage_pool_workers{{{_CELL}}}", "workers"),
                ),
            ),
            Panel(
                "Heartbeat",
                "s",
                (*_by_worker("zimage_worker_heartbeat_age_seconds"),),
                description="Since the present phase or step began",
            ),
            Panel(
                "Alarms of the guard",
                "none",
                ((f"zimage_alarm{{{_CELL}}}", "{{alarm}} {{worker}}"),),
                kind="state-timeline",
            ),
        ),
    ),
    (
        "Workers",
        (
            Panel("Waiting requests", "short", _by_worker("zimage_queued_requests"), stacked=True),
            Panel("Requests being drawn", "short", _by_worker("zimage_running_requests")),
            Panel(
                "Drawing by size, p50",
                "s",
                (
                    (
                        _quantile(0.5, "zimage_inference_duration_seconds", "size"),
                        "up to {{size}}²",
                    ),
                ),
            ),
            Panel(
                "Steps",
                "ops",
                ((_rate("zimage_batch_pictures_count", "worker"), "{{worker}}"),),
                stacked=True,
            ),
            Panel(
                "Pictures a step",
                "short",
                (
                    (
                        f"{_rate('zimage_batch_pictures_sum', 'worker')}"
                        f" / {_rate('zimage_batch_pictures_count', 'worker')}",
                        "{{worker}}",
                    ),
                ),
            ),
            Panel(
                "Share of time with work, and inside the pipeline",
                "percentunit",
                (
                    (_rate("zimage_busy_seconds_total", "worker"), "{{worker}} work"),
                    (_rate("zimage_device_seconds_total", "worker"), "{{worker}} pipeline"),
                ),
            ),
            Panel(
                "Encoding",
                "s",
                ((_quantile(0.95, "zimage_encode_duration_seconds", "format"), "{{format}} p95"),),
            ),
            Panel(
                "Cached text embeddings",
                "percentunit",
                (
                    (
                        _rate(_LOOKUPS, "worker", f'{_CELL}, result="hit"')
                        + f" / {_rate(_LOOKUPS, 'worker')}",
                        "{{worker}}",
                    ),
                ),
            ),
            Panel(
                "Out of memory, struck requests",
                "short",
                (
                    (
                        f"increase(zimage_out_of_memory_total{{{_CELL}}}[$__rate_interval])",
                        "{{worker}} out of memory",
                    ),
                    (
                        f"increase(zimage_strikes_total{{{_CELL}}}[$__rate_interval])",
                        "{{worker}} struck, {{action}}",
                    ),
                ),
            ),
        ),
    ),
    (
        "Jobs, keys, database",
        (
            Panel(
                "Items of jobs",
                "short",
                (
                    (f"60 * {_rate('zimage_job_items_total', 'result')}", "{{result}}, a minute"),
                    (f"sum(zimage_job_items_held{{{_CELL}}})", "held by workers"),
                ),
            ),
            Panel(
                "Requests without a good key",
                "reqps",
                ((_rate("zimage_http_requests_denied_total", "reason"), "{{reason}}"),),
                stacked=True,
            ),
            Panel(
                "Database away, pictures lost",
                "short",
                (
                    (
                        f"increase(zimage_database_failures_total{{{_CELL}}}[$__rate_interval])",
                        "{{worker}} calls not answered",
                    ),
                    (
                        f"increase(zimage_pictures_lost_total{{{_CELL}}}[$__rate_interval])",
                        "{{worker}} pictures lost",
                    ),
                ),
            ),
        ),
    ),
    (
        "Machine",
        (
            Panel(
                "GPU in use",
                "percentunit",
                ((f"zimage_gpu_utilization_ratio{{{_CELL}}}", "{{gpu}}"),),
            ),
            Panel(
                "GPU memory",
                "bytes",
                (
                    (f"zimage_gpu_memory_used_bytes{{{_CELL}}}", "{{gpu}} used"),
                    (f"zimage_gpu_memory_size_bytes{{{_CELL}}}", "{{gpu}} size"),
                    (f"zimage_device_memory_allocated_bytes{{{_CELL}}}", "{{worker}} allocated"),
                ),
            ),
            Panel(
                "GPU temperature",
                "celsius",
                ((f"zimage_gpu_temperature_celsius{{{_CELL}}}", "{{gpu}}"),),
            ),
            Panel("Memory of workers", "bytes", _by_worker("zimage_worker_resident_memory_bytes")),
            Panel(
                "Connections of nginx",
                "short",
                ((f"zimage_nginx_connections{{{_CELL}}}", "{{state}}"),),
                stacked=True,
            ),
            Panel("Free disk", "bytes", ((f"zimage_disk_free_bytes{{{_CELL}}}", "{{cell}}"),)),
            Panel(
                "Lag of the guard, p99",
                "s",
                ((_quantile(0.99, "zimage_guard_lag_seconds"), "of ten looks a second"),),
            ),
            Panel(
                "Processor time",
                "percentunit",
                (
                    (
                        f"rate(process_cpu_seconds_total{{{_CELL}}}[$__rate_interval])",
                        "{{job}} {{worker}}",
                    ),
                ),
            ),
            Panel("Open files", "short", ((f"process_open_fds{{{_CELL}}}", "{{job}} {{worker}}"),)),
        ),
    ),
)

_FRAME: dict[str, Any] = {
    "uid": "zimage-cluster",
    "title": "zimage-cluster",
    "tags": ["zimage"],
    "timezone": "browser",
    "schemaVersion": 39,
    "version": 1,
    "editable": True,
    "graphTooltip": 1,
    "refresh": "30s",
    "time": {"from": "now-3h", "to": "now"},
    "annotations": {
        "list": [
            {
                "name": "Alerts",
                "datasource": _DATASOURCE,
                "enable": True,
                "iconColor": "red",
                "expr": 'ALERTS{alertname=~"Zimage.*", alertstate="firing", cell=~"$cell"}',
                "titleFormat": "{{alertname}}",
            }
        ]
    },
    "templating": {
        "list": [
            {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Source"},
            {
                "name": "cell",
                "type": "query",
                "label": "Cell",
                "datasource": _DATASOURCE,
                "query": "label_values(zimage_pool_members, cell)",
                "definition": "label_values(zimage_pool_members, cell)",
                "includeAll": True,
                "multi": True,
                "refresh": 2,
                "current": {"text": "All", "value": "$__all"},
            },
        ]
    },
}


def _row(number: int, title: str, top: int) -> dict[str, Any]:
    place = {"x": 0, "y": top, "w": 24, "h": 1}
    return {"id": number + 1, "type": "row", "title": title, "gridPos": place, "panels": []}


def _panel(number: int, panel: Panel, left: int, top: int) -> dict[str, Any]:
    custom = {"stacking": {"mode": "normal"}, "fillOpacity": 30} if panel.stacked else {}
    targets = [
        {
            "refId": chr(ord("A") + n),
            "datasource": _DATASOURCE,
            "expr": expr,
            "legendFormat": legend,
        }
        for n, (expr, legend) in enumerate(panel.queries)
    ]
    return {
        "id": number + 1,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "gridPos": {"x": left, "y": top, "w": _WIDE, "h": _HIGH},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": custom},
            "overrides": [],
        },
        "options": {"tooltip": {"mode": "multi"}, "legend": {"displayMode": "list"}},
        "targets": targets,
    }
