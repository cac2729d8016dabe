"""What a file of results says, as pictures: ``python -m loadtest.gpu.plot gpu.jsonl``.

Beside the file: ``rates.svg``, images a second by size against what was promised, and
``scale.svg``, several cards against the sum of each alone.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pygal  # type: ignore[import-untyped, unused-ignore]
from pygal.style import Style  # type: ignore[import-untyped, unused-ignore]

BARS = {1024: 1.15, 512: 4.7, 256: 13.0}
"""Images a second that one H100 must serve."""
_STYLE = Style(background="white", plot_background="white", colors=("#2563eb", "#9ca3af"))


def plot(results: Path) -> list[Path]:
    """The pictures that there are results for."""
    found = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    return [
        path
        for draw, name in ((_rates, "rates.svg"), (_scale, "scale.svg"))
        if (path := draw(found, results.with_name(name))) is not None
    ]


def _rates(found: list[dict[str, Any]], path: Path) -> Path | None:
    plain = [each for each in found if each["stage"] == "serve" and "fp8" not in each]
    rates = {each["size"]: each["images_per_s"] for each in plain if "size" in each}
    if not rates:
        return None
    chart = _chart("Images a second through nginx, one GPU", [f"{side}²" for side in rates])
    chart.add("measured", list(rates.values()))
    chart.add("promised", [BARS.get(side) for side in rates])
    chart.render_to_file(str(path))
    return path


def _scale(found: list[dict[str, Any]], path: Path) -> Path | None:
    rows = [each for each in found if each["stage"] == "scale" and "cards" in each]
    if not rows:
        return None
    chart = _chart("Images a second by number of GPUs", [str(each["cards"]) for each in rows])
    chart.add("together", [each["images_per_s"] for each in rows])
    chart.add("sum of each alone", [each["alone_sum"] for each in rows])
    chart.render_to_file(str(path))
    return path


def _chart(title: str, labels: list[str]) -> Any:
    chart = pygal.Bar(
        title=title,
        style=_STYLE,
        print_values=True,
        truncate_legend=-1,
        width=640,
        height=400,
        disable_xml_declaration=True,
    )
    chart.x_labels = labels
    return chart


if __name__ == "__main__":
    for path in plot(Path(sys.argv[1])):
        print(path)
