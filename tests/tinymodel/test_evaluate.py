from PIL import Image

from tinymodel.evaluate import Drawing, report, table
from tinymodel.judge import Verdict
from tinymodel.shapes import Scene, Shape

SCENE = Scene("white", (Shape("star"),))


def _drawing(prompt: str, shape_ok: bool) -> Drawing:
    return Drawing(
        prompt, SCENE, Image.new("RGB", (8, 8)), Verdict(True, True, shape_ok, True, True)
    )


def test_report_counts_by_language() -> None:
    figures = report([_drawing("a star", True), _drawing("星星", False)])
    assert figures["all"]["shape"] == 0.5
    assert (figures["English"]["shape"], figures["Chinese"]["everything"]) == (1.0, 0.0)


def test_table_names_the_aims() -> None:
    rows = table(report([_drawing("a star", True)])).splitlines()
    assert rows[2].startswith("| aim |  | 98% | 95% | 90% | 90% |")
    assert rows[3] == "| all | 1 | 100.0% | 100.0% | 100.0% | 100.0% | 100.0% | 100.0% |"
