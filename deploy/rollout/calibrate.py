"""``zimage calibrate``: what drawing costs on a worker's device, measured, stored and shown.

The measuring is ``python -m worker.calibration``, run as the worker would run. Where the cell is
up, that worker is drained and stopped meanwhile, so that the device is free.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from deploy import drains, output
from deploy.cell import Cell, CellError
from deploy.host import processes
from deploy.installation import BASE, PYTHON
from deploy.rendering.render import settings_document, worker_environment
from deploy.rollout import files, interrupts, roll, wait
from deploy.rollout.operation import Rollout
from deploy.rollout_record import Step
from worker.calibration.timings import Measured

_END_S = 10.0


@dataclass(frozen=True)
class Table:
    rows: tuple[Measured, ...]
    caps: dict[str, int]  # by WIDTHxHEIGHT: rows that share a step
    steps: int
    path: Path

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}


def run(rollout: Rollout, name: str, sizes: str, repeats: int) -> Table:
    """Measure on the device of worker ``name``. Raises CellError with the remedy."""
    with _free(rollout, name):
        return _measure(rollout.cell, name, sizes, repeats)


def shown(table: Table) -> RichTable:
    """For people: the batch that is used at each size is marked."""
    numbers = ("batch", "text", "step", "decode", "a picture", "peak")
    shown = output.table("size", *numbers, "", right=numbers)
    for row in table.rows:
        size = f"{row.size[0]}x{row.size[1]}"
        mark = "◂ used" if table.caps.get(size) == row.rows else ""
        peak = "" if row.peak_bytes is None else f"{row.peak_bytes / (1 << 30):.1f} GiB"
        times = (row.encode_s, row.step_s, row.decode_s, row.picture_s(table.steps))
        shown.add_row(size, str(row.rows), *(f"{s * 1000:.1f} ms" for s in times), peak, mark)
    return shown


def draw_plot(table: Table, path: Path) -> None:
    """Seconds of a picture over the batch, a line a size, as SVG."""
    try:
        pygal = importlib.import_module("pygal")
    except ImportError:
        raise CellError("--plot needs pygal; install it with: pip install pygal") from None
    by_size: dict[str, dict[int, float]] = defaultdict(dict)
    for row in table.rows:
        by_size[f"{row.size[0]}x{row.size[1]}"][row.rows] = row.picture_s(table.steps) * 1000
    chart = pygal.XY(
        title=f"Milliseconds of a picture of {table.steps} steps", x_title="pictures in a step"
    )
    for size, points in by_size.items():
        chart.add(size, sorted(points.items()))
    chart.render_to_file(str(path))


@contextlib.contextmanager
def _free(rollout: Rollout, name: str) -> Iterator[None]:
    """Worker ``name`` does not run meanwhile; afterwards it is as it was."""
    cell = rollout.cell
    if not processes.members(cell.layout.processes):
        yield
        return
    if len(cell.plan.names) == 1:
        output.warn(f"{name} is the only worker: nothing is drawn until this is done")
    output.step(f"{name}: drain and stop, to have its device alone")
    roll.require_known(cell, name)
    rollout.enter(name, Step.DRAINING)
    with drains.held(cell.layout, name, "calibrate") as by_hand:
        roll.wait_drained(cell, name)
        rollout.enter(name, Step.RESTARTING)
        try:
            with interrupts.deferred():
                cell.supervisor.stop(name, roll.stop_timeout_s(cell))
            yield
        finally:
            cell.supervisor.start(name)
            rollout.enter(name, Step.OPENING)
    if not by_hand:
        timeout_s = cell.config.timeouts.up_timeout_s
        wait.until_open(cell, [name], timeout_s, f"starting {name}")
    rollout.enter(name, Step.DONE)


def _measure(cell: Cell, name: str, sizes: str, repeats: int) -> Table:
    worker = next(w for w in cell.plan.workers if w.name == name)
    own = worker_environment(cell.config, worker, cell.layout, cell.host)
    files.put(cell.layout.render_dir, dict([settings_document(cell.config, worker, cell.layout)]))
    command = [PYTHON, "-m", "worker.calibration", "--repeats", str(repeats)]
    command += ["--sizes", sizes] if sizes else []
    output.step(f"{name}: measure on {worker.device_name}")
    lines: list[dict[str, Any]] = []
    with subprocess.Popen(
        command,
        cwd=BASE,
        env={"PATH": os.environ.get("PATH", ""), **own},
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=processes.bound(signal.SIGKILL),  # it would keep the card
    ) as measuring:
        assert measuring.stdout is not None
        try:
            for line in measuring.stdout:
                if line.startswith("{"):
                    lines.append(json.loads(line))
                    _progress(lines[-1])
        except BaseException:
            _end(measuring)
            raise
    code = measuring.returncode
    if code or not lines or "path" not in lines[-1]:
        raise CellError(f"the measuring ended with code {code}; what it said stands above")
    return _table(lines)


def _end(measuring: subprocess.Popen[str]) -> None:
    measuring.terminate()
    try:
        measuring.wait(_END_S)
    except subprocess.TimeoutExpired:
        measuring.kill()


def _progress(line: dict[str, Any]) -> None:
    if "rows" in line:
        width, height = line["size"]
        output.say(f"    {width}x{height}, {line['rows']}: a step of {line['step_s'] * 1e3:.1f} ms")


def _table(lines: list[dict[str, Any]]) -> Table:
    *measured, end = lines
    rows = tuple(Measured(**{**line, "size": tuple(line["size"])}) for line in measured)
    return Table(rows, end["caps"], end["steps"], Path(end["path"]))
