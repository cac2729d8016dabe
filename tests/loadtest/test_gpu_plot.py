import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from loadtest.gpu.plot import plot


def results(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def words(svg: Path) -> set[str]:
    return {text for element in ElementTree.parse(svg).iter() if (text := element.text)}


def test_rates_stand_beside_what_is_promised(tmp_path: Path) -> None:
    found = results(
        tmp_path / "gpu.jsonl",
        {"stage": "serve", "size": 1024, "images_per_s": 1.405, "alone_s": 0.762},
        {"stage": "serve", "size": 1024, "images_per_s": 1.839, "fp8": "transformer"},
        {"stage": "serve", "error": "TimeoutError: not ready"},
        {"stage": "restart", "seconds": 16.9},
    )
    assert plot(found) == [tmp_path / "rates.svg"]
    shown = words(tmp_path / "rates.svg")
    assert {"1024²", "1.405", "1.15", "measured", "promised"} <= shown
    assert "1.839" not in shown


def test_cards_together_stand_beside_the_sum_of_each_alone(tmp_path: Path) -> None:
    found = results(
        tmp_path / "gpu.jsonl",
        {"stage": "scale", "serving": ["w1"], "images_per_s": 1.2},
        {"stage": "scale", "cards": 1, "images_per_s": 1.231, "alone_sum": 1.231},
        {"stage": "scale", "cards": 2, "images_per_s": 2.498, "alone_sum": 2.492},
    )
    assert plot(found) == [tmp_path / "scale.svg"]
    assert {"2.498", "2.492", "sum of each alone"} <= words(tmp_path / "scale.svg")
