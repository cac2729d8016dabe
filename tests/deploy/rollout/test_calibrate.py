import io
import os
import signal
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from rich.console import Console

from deploy.cell import Cell, CellError
from deploy.config import load
from deploy.host import processes
from deploy.rollout import operation
from deploy.rollout.calibrate import Table, draw_plot, run, shown
from tests import command_line
from tests.deploy.processes import wait_until
from worker.calibration.timings import Measured

CONFIG = """
[cell]
var_dir = "{folder}/var"
user = "root"
[model]
source = "{model}"
[limits.worker]
max_batch = 2
[[workers]]
device = "cpu"
"""


def cell(folder: Path, model: str = "synthetic:step_ms=1") -> Cell:
    path = folder / "cluster.toml"
    path.write_text(CONFIG.format(folder=folder, model=model))
    return Cell(load(path), path)


def table(path: Path) -> Table:
    rows = tuple(Measured((64, 64), n, 0.01, 0.1 * n, 0.02, 3 << 30) for n in (1, 2))
    return Table(rows, {"64x64": 1}, steps=8, path=path)


def test_a_free_device_is_measured_and_the_table_stored(tmp_path: Path) -> None:
    with operation.begin(cell(tmp_path), "calibrate", "calibrate w1") as rollout:
        found = run(rollout, "w1", sizes="64x64,128x128", repeats=1)
    assert [(row.size, row.rows) for row in found.rows] == [
        ((64, 64), 1),
        ((64, 64), 2),
        ((128, 128), 1),
        ((128, 128), 2),
    ]
    assert found.path.is_file()


def test_a_failed_measurement_is_an_error(tmp_path: Path) -> None:
    begun = operation.begin(cell(tmp_path), "calibrate", "calibrate w1")
    with pytest.raises(CellError, match="ended with code 2"), begun as rollout:
        run(rollout, "w1", sizes="64", repeats=1)


def test_killed_command_leaves_nobody_who_measures(tmp_path: Path) -> None:
    words = ("calibrate", "--repeats", "100000", "--sizes", "64x64")
    config = ("--config", str(cell(tmp_path).config_path))
    with command_line.started((*words, *config), os.environ) as killed:
        measuring = wait_until(lambda: children(killed.pid, "worker.calibration"), "measuring")
        killed.send_signal(signal.SIGKILL)
    assert processes.wait_gone(measuring, 10.0) == []


def children(pid: int, module: str) -> list[processes.Process]:
    found = (p for p in processes._all() if p.parent == pid)
    return [p for p in found if module in p.command]


def test_people_see_which_batch_is_used(tmp_path: Path) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(shown(table(tmp_path)))
    lines = [line for line in console.export_text().splitlines() if "64x64" in line]
    assert "used" in lines[0]
    assert "830.0 ms" in lines[0]
    assert "used" not in lines[1]


def test_the_plot_is_an_svg(tmp_path: Path) -> None:
    draw_plot(table(tmp_path), tmp_path / "plot.svg")
    assert ElementTree.parse(tmp_path / "plot.svg").getroot().tag.endswith("svg")
