"""What ``loadtest/hosts --scale`` or ``--leases`` found, as pictures beside its file:

    python -m loadtest.cluster.plot var/hosts/scale.json

Throughput against what could be drawn, waits, and how evenly, by number of hosts or workers.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pygal  # type: ignore[import-untyped, unused-ignore]
from pygal.style import Style  # type: ignore[import-untyped, unused-ignore]

_STYLE = Style(background="white", plot_background="white", colors=("#2563eb", "#9ca3af"))
Lines = dict[str, str]
"""Of a chart: what the legend calls each, and the field that it shows."""

OF_HOSTS: dict[str, tuple[str, Lines]] = {
    "throughput": ("Pictures a second by hosts", {"answered": "per_s", "drawn alone": "could"}),
    "wait": ("Wait by hosts, s", {"p50": "p50_s", "p99": "p99_s"}),
    "fairness": ("Most over least drawn by a host", {"ratio": "spread"}),
}
OF_WORKERS: dict[str, tuple[str, Lines]] = {
    "throughput": ("Items a second by workers", {"finished": "per_s", "drawn alone": "could"}),
    "wait": ("Lease of items by workers, ms", {"p50": "take_p50_ms", "p99": "take_p99_ms"}),
    "fairness": ("Most over least of an owner", {"ratio": "spread"}),
}


def plot(results: Path) -> list[Path]:
    """One a chart; rounds without a time to draw have no place in them."""
    found = [row for row in json.loads(results.read_text(encoding="utf-8")) if row["efficiency"]]
    what, charts = ("workers", OF_WORKERS) if "clients" in found[0] else ("hosts", OF_HOSTS)
    counts = [row.get("clients", row.get("hosts")) for row in found]
    for row in found:
        row["could"] = row["per_s"] / row["efficiency"]
    return [
        _line(results.with_name(f"{what}-{name}.svg"), title, counts, lines, found)
        for name, (title, lines) in charts.items()
    ]


def _line(
    path: Path, title: str, counts: list[int], lines: Lines, found: list[dict[str, Any]]
) -> Path:
    """By powers of ten where the values span them, so that each round can be told."""
    values = [row[field] for field in lines.values() for row in found]
    spans = min(values) > 0 and max(values) > 30 * min(values)
    chart = pygal.Line(
        title=title,
        style=_STYLE,
        logarithmic=spans,
        range=None if max(values) > 2 else (0, 2),
        truncate_legend=-1,
        width=640,
        height=360,
        disable_xml_declaration=True,
    )
    chart.x_labels = [str(count) for count in counts]
    if spans:
        first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        chart.y_labels = [10.0**power for power in range(first, last + 1)]
    for name, field in lines.items():
        chart.add(name, [round(row[field], 2) for row in found])
    chart.render_to_file(str(path))
    return path


if __name__ == "__main__":
    for path in plot(Path(sys.argv[1])):
        print(path)
