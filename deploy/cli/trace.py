"""``zimage trace``: how much of its time each worker's drawing thread spends beside the device.

Each worker counts the seconds in which its thread had something to draw and, of those, the seconds
inside the pipeline. What is between them is ours: choosing, telling, waiting for the interpreter.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from deploy import output
from deploy.cell import Cell, CellError
from deploy.supervision.livez import livez


@dataclass(frozen=True)
class Trace:
    """One worker over ``seconds``; ``idle_share`` is None where it had nothing to draw."""

    worker: str
    seconds: float
    busy_s: float
    device_s: float
    steps: int

    @property
    def idle_share(self) -> float | None:
        return None if self.busy_s <= 0 else max(0.0, 1 - self.device_s / self.busy_s)


def trace(cell: Cell, seconds: float) -> list[Trace]:
    """Look at every worker that answers, ``seconds`` apart. Raises CellError where none does."""
    sockets = {name: cell.layout.socket(name) for name in cell.plan.names}
    before = {name: counters(path) for name, path in sockets.items()}
    if not any(before.values()):
        raise CellError("no worker answers; start the cell with: zimage up")
    time.sleep(seconds)
    after = {name: counters(path) for name, path in sockets.items()}
    return [
        _difference(name, seconds, old, new)
        for name, old in before.items()
        if old and (new := after[name]) and new["steps"] >= old["steps"]
    ]


def counters(socket: Path) -> dict[str, float] | None:
    """The totals of the worker at ``socket``; None where it does not answer or still loads."""
    engine = livez(socket).get("engine")
    return engine and {name: float(value) for name, value in engine["totals"].items()}


def shown(traces: list[Trace]) -> Table:
    """For people."""
    numbers = ("drawing", "steps", "inside the pipeline", "idle share")
    table = output.table("worker", *numbers, right=numbers)
    for each in traces:
        share = "–" if each.idle_share is None else f"{each.idle_share:.1%}"
        drawing = f"{each.busy_s / each.seconds:.0%}"
        table.add_row(each.worker, drawing, str(each.steps), f"{each.device_s:.2f} s", share)
    return table


def _difference(name: str, seconds: float, old: dict[str, float], new: dict[str, float]) -> Trace:
    busy_s, device_s = new["busy_s"] - old["busy_s"], new["device_s"] - old["device_s"]
    return Trace(name, seconds, busy_s, device_s, int(new["steps"] - old["steps"]))
