"""Figures of a run, arranged for the templates."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from loadtest import measures, run_file
from loadtest.chaos import Injected
from loadtest.faults.catalogue import FAULTS
from loadtest.record import Record
from loadtest.report import chart
from loadtest.report.chart import Axis, TimeAxis
from loadtest.run_file import Run

PLOT_HEIGHT = 170
MAX_DOTS = 4000

LABELS = {
    "requests": "Requests",
    "failed": "Failed requests",
    "refused": "Refused requests",
    "left": "Users who left early",
    "cut": "Replies cut by a fault that users may see",
    "resumed_streams": "Streams resumed by the client",
    "replayed": "Sent on to another worker",
    "refused_share": "Share refused",
    "p50_s": "Latency, median",
    "p95_s": "Latency, p95",
    "p99_s": "Latency, p99",
    "longest_s": "Latency, longest",
    "queue_p50_s": "Wait in the queue, median",
    "queue_p99_s": "Wait in the queue, p99",
    "requests_per_s": "Requests a second",
    "pictures_per_s": "Pictures a second",
    "faults": "Faults injected",
    "unhealed_faults": "Faults that did not heal",
    "out_s": "Slowest way out of the pool",
    "hang_out_s": "Hang: out of the pool",
    "hang_overdue_s": "Hang: out of the pool, beyond its allowance",
    "back_s": "Slowest way back",
    "changes_failed": "Changes that failed",
    "changes_s": "All changes together",
    "accepts_again_s": "Accepts again after",
    "drained_s": "Queue empty after",
    "calm_again_s": "As few inside as before a spike, after",
    "capacity_per_s": "Capacity, requests a second",
    "capacity_users": "Users within p95",
    "restarts": "Workers that restarted",
    "memory_growth_mib": "Memory growth",
    "files_growth": "Open files growth",
    "threads_growth": "Threads growth",
    "temporary_files_growth": "Temporary files growth",
    "temporary_files_left": "Temporary files left",
    "throughput_ratio": "Throughput, cell over Gradio",
    "gradio_failed": "Failed requests, Gradio",
}


@dataclass(frozen=True)
class Figure:
    """One measured value, as people read it."""

    name: str
    label: str
    value: float

    @property
    def text(self) -> str:
        return shown(self.name, self.value)


def write(folder: Path) -> Path:
    """``report.html`` and ``report.md`` beside ``run.json``; the page's path."""
    run, records = run_file.load(folder)
    values = context(run, records)
    for name in ("report.html", "report.md"):
        text = _environment().get_template(f"{name}.jinja").render(values)
        (folder / name).write_text(text, encoding="utf-8")
    return folder / "report.html"


def compare(before: Path, after: Path) -> Path:
    """``compare.html`` and ``compare.md`` in the folder of the second run."""
    pairs = [run_file.load(folder) for folder in (before, after)]
    runs = [run for run, _ in pairs]
    values = {
        "runs": runs,
        "rows": _rows(*runs),
        "curves": _distributions([records for _, records in pairs]),
        "verdict": _changes(runs[0], runs[1]),
        **_tools(),
    }
    for name in ("compare.html", "compare.md"):
        text = _environment().get_template(f"{name}.jinja").render(values)
        (after / name).write_text(text, encoding="utf-8")
    return after / "compare.html"


def context(run: Run, records: list[Record]) -> dict[str, Any]:
    axis = TimeAxis(run.started, run.ended)
    return {
        "run": run,
        "axis": axis,
        "verdict": verdict(run),
        "tiles": _tiles(run),
        "figures": [Figure(n, label(n), v) for n, v in sorted(run.measured.items())],
        "latency": _latency(records, axis),
        "throughput": _throughput(records, axis),
        "queue": _queue(run, axis),
        "memory": _memory(run, axis),
        "slopes": _slopes(run),
        "temporary": measures.growth(run.temporary_files),
        "bars": _bars(run),
        "failures": [r for r in records if r.result == "failed"][:20],
        "what": {name: fault.what for name, fault in FAULTS.items()},
        "seen": [_told(_hit(records, fault.at)) for fault in run.faults],
        **_tools(),
    }


def verdict(run: Run) -> str:
    """One sentence that an ops lead can repeat."""
    count, failed = run.measured["requests"], run.measured["failed"]
    requests = f"{count:,.0f} requests, {failed:,.0f} failed"
    if faults := run.measured.get("faults"):
        requests += f", under {faults:.0f} faults"
    if cut := run.measured.get("cut"):
        requests += f", {cut:.0f} replies cut by the one that users may see"
    if run.measured["refused"]:
        requests += f", {run.measured['refused']:,.0f} refused with an honest Retry-After"
    missed = [objective for objective in run.objectives if not objective.met]
    if not missed:
        return f"{requests}. Every objective is met."
    listed = "; ".join(str(objective) for objective in missed)
    return f"{requests}. {len(missed)} of {len(run.objectives)} objectives missed: {listed}."


def label(name: str) -> str:
    if name in LABELS:
        return LABELS[name]
    for prefix, text in (
        ("pictures_per_s_", "Pictures a second, workers: "),
        ("efficiency_", "Efficiency, workers: "),
    ):
        if name.startswith(prefix):
            return text + name.removeprefix(prefix)
    for prefix, text in (("cell_", "Cell: "), ("gradio_", "Gradio: ")):
        if name.startswith(prefix):
            return text + label(name.removeprefix(prefix)).lower()
    return name


def shown(name: str, value: float) -> str:
    """``value`` with its unit, as short as it is exact."""
    if math.isnan(value):
        return "–"
    if name.endswith("_per_s") or "_per_s_" in name:
        return f"{value:.2f} /s"
    if name.endswith("_s"):
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    if name.endswith("_mib"):
        return f"{value:+.1f} MiB"
    if name.endswith("_share") or name.startswith("efficiency"):
        return f"{value:.0%}"
    if name.endswith("_ratio"):
        return f"{value:.2f} ×"
    return f"{value:,.0f}" if float(value).is_integer() else f"{round(value, 1) + 0.0:,.1f}"


def _tools() -> dict[str, Any]:
    return {
        "WIDTH": chart.WIDTH,
        "LEFT": chart.LEFT,
        "RIGHT": chart.RIGHT,
        "HEIGHT": PLOT_HEIGHT,
        "label": label,
        "shown": shown,
        "clock": chart.clock,
        "when": lambda at: time.strftime("%Y-%m-%d %H:%M", time.localtime(at)),
        "isnan": math.isnan,
    }


_TILES = (
    "requests", "failed", "cut", "refused", "replayed", "resumed_streams", "pictures_per_s",
    "p50_s", "p95_s", "p99_s", "out_s", "back_s", "accepts_again_s", "drained_s",
    "throughput_ratio", "capacity_users", "memory_growth_mib",
)  # fmt: skip


def _tiles(run: Run) -> list[Figure]:
    return [Figure(n, label(n), run.measured[n]) for n in _TILES if n in run.measured]


def _latency(records: list[Record], axis: TimeAxis) -> dict[str, Any]:
    ok = [r.seconds for r in records if r.result == "ok"]
    y = Axis.to(max(ok, default=1.0), PLOT_HEIGHT)
    every = max(1, len(records) // MAX_DOTS)
    plain = [r for r in records if r.result in {"ok", "left"}][::every]
    told = [r for r in records if r.result in {"failed", "refused"}][:MAX_DOTS]
    found = [b for b in chart.buckets(records, axis) if not math.isnan(b.p50_s)]
    return {
        "y": y,
        "dots": [(axis.x(r.end), y.place(r.seconds), r) for r in [*plain, *told]],
        "p50": chart.path([(axis.x(b.at), PLOT_HEIGHT - y.place(b.p50_s)) for b in found]),
        "p95": chart.path([(axis.x(b.at), PLOT_HEIGHT - y.place(b.p95_s)) for b in found]),
    }


def _throughput(records: list[Record], axis: TimeAxis) -> dict[str, Any]:
    found = chart.buckets(records, axis)
    y = Axis.to(max((b.pictures_per_s for b in found), default=1.0), PLOT_HEIGHT / 2)
    line = [(axis.x(b.at), PLOT_HEIGHT / 2 - y.place(b.pictures_per_s)) for b in found]
    return {"y": y, "line": chart.path(line), "area": _area(line, PLOT_HEIGHT / 2)}


def _queue(run: Run, axis: TimeAxis) -> dict[str, Any]:
    every = max(1, len(run.queue) // 600)
    points = run.queue[::every]
    y = Axis.to(max((n for _, n in points), default=1), PLOT_HEIGHT / 2)
    line = [(axis.x(at), PLOT_HEIGHT / 2 - y.place(n)) for at, n in points]
    return {"y": y, "line": chart.path(line), "area": _area(line, PLOT_HEIGHT / 2)}


def _area(line: list[tuple[float, float]], bottom: float) -> str:
    return chart.path([(line[0][0], bottom), *line, (line[-1][0], bottom)]) + "Z" if line else ""


def _memory(run: Run, axis: TimeAxis) -> dict[str, Any]:
    largest = max((s.rss_mib for all_ in run.resources.values() for s in all_), default=1.0)
    y = Axis.to(largest, PLOT_HEIGHT)

    def path(points: list[tuple[float, float]]) -> str:
        return chart.path([(axis.x(at), PLOT_HEIGHT - y.place(mib)) for at, mib in points])

    points = {n: [(s.at, s.rss_mib) for s in all_] for n, all_ in sorted(run.resources.items())}
    return {
        "y": y,
        "lines": {name: path(seen) for name, seen in points.items()},
        # A line through restarts says nothing.
        "fits": [
            path(measures.fitted(seen)) for seen in points.values() if not run.faults + run.marks
        ],
    }


def _slopes(run: Run) -> list[dict[str, Any]]:
    """What each program has at the end, and what the fitted line gains over the run."""
    rows = []
    for name, samples in sorted(run.resources.items()):
        row: dict[str, Any] = {"name": name, "last": samples[-1]}
        for what in ("rss_mib", "files", "threads"):
            row[what] = measures.growth([(s.at, float(getattr(s, what))) for s in samples])
        rows.append(row)
    return rows


def _bars(run: Run) -> list[dict[str, Any]]:
    """Pictures a second of each part, where a run has several."""
    if len(run.parts) < 2:
        return []
    rates = [part.measured.get("pictures_per_s", 0.0) for part in run.parts]
    axis = Axis.to(max(rates), 420)
    return [
        {
            "part": part,
            "rate": rate,
            "width": axis.place(rate),
            "ratio": rate / rates[0] if rates[0] else 0,
        }
        for part, rate in zip(run.parts, rates, strict=True)
    ]


def _hit(records: list[Record], at: float) -> list[Record]:
    """Requests that waited at that moment or were sent a little later."""
    return [r for r in records if r.at <= at + 2 and r.end >= at]


def _told(hit: list[Record]) -> str:
    """What their users saw."""
    failed = sum(r.result == "failed" for r in hit)
    resumed = sum(r.resumed > 0 for r in hit)
    longest = max((r.seconds for r in hit), default=0.0)
    parts = [f"{failed} failed" if failed else "no error"]
    parts += [f"{resumed} stream{'s' if resumed > 1 else ''} resumed"] if resumed else []
    return ", ".join([*parts, f"longest wait {longest:.1f} s"])


def fault_table(folders: Iterable[Path]) -> str:
    """Every fault of these runs in Markdown, in the catalogue's order, with its worst times."""
    runs = [run_file.load(folder) for folder in folders]
    lines = ["| fault | what users saw | out of the pool | back |", "|---|---|---|---|"]
    for name in FAULTS:
        hits = [(f, _hit(records, f.at)) for run, records in runs for f in run.faults]
        if hits := [(fault, hit) for fault, hit in hits if fault.name == name]:
            lines.append(_fault_row([f for f, _ in hits], [r for _, hit in hits for r in hit]))
    return "\n".join(lines)


def _fault_row(faults: list[Injected], hit: list[Record]) -> str:
    outs = [f.out_s for f in faults if f.out_s is not None]
    backs = [f.back_s for f in faults if f.back_s is not None]
    out = shown("out_s", max(outs)) if outs else "stays in"
    back = shown("back_s", max(backs)) if len(backs) == len(faults) else "not in time"
    return f"| `{faults[0].name}` | {_told(hit)} | {out} | {back} |"


def _rows(before: Run, after: Run) -> list[dict[str, Any]]:
    names = [n for n in (*_TILES, *sorted(after.measured)) if n in after.measured]
    rows = []
    for name in dict.fromkeys(names):
        old, new = before.measured.get(name, math.nan), after.measured[name]
        change = (new - old) / old if old and not math.isnan(old) else math.nan
        rows.append({"name": name, "old": old, "new": new, "change": change})
    return rows


def _changes(before: Run, after: Run) -> str:
    words = {True: "passed", False: "failed"}
    p95 = before.measured["p95_s"], after.measured["p95_s"]
    rate = before.measured["pictures_per_s"], after.measured["pictures_per_s"]
    return (
        f"{before.scenario} {words[before.passed]} before and {words[after.passed]} now: "
        f"p95 {p95[0]:.2f} s → {p95[1]:.2f} s, {rate[0]:.2f} → {rate[1]:.2f} pictures a second."
    )


def _distributions(all_records: list[list[Record]]) -> dict[str, Any]:
    """Latency over the share of requests that were at most as slow."""
    sorted_ = [sorted(r.seconds for r in records if r.result == "ok") for records in all_records]
    y = Axis.to(max((s[-1] for s in sorted_ if s), default=1.0), PLOT_HEIGHT)
    width = chart.WIDTH - chart.LEFT - chart.RIGHT
    lines = []
    for values in sorted_:
        at = [k / 200 for k in range(1, 201)]
        points = [(chart.LEFT + a * width, measures.percentile(values, a)) for a in at if values]
        lines.append(chart.path([(x, PLOT_HEIGHT - y.place(v)) for x, v in points]))
    return {"y": y, "lines": lines}


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("loadtest", "report"),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
