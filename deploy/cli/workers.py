"""Commands that name workers: drain, undrain, restart, calibrate, and trace of them all."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from deploy import output
from deploy.cell import Cell, CellError
from deploy.cli import trace as tracing
from deploy.cli.options import AsJson, Config, open_cell
from deploy.rollout import calibrate as calibration
from deploy.rollout import operation, roll

WorkerName = Annotated[str, typer.Argument(help="Name of a worker, such as w1.")]


def drain(
    worker: WorkerName,
    config: Config = None,
    reason: Annotated[str, typer.Option(help="Why, for whoever finds it drained.")] = "",
) -> None:
    """Take a worker out of the pool and let it finish. It stays out until undrain."""
    cell = open_cell(config)
    _known_worker(cell, worker)
    output.step(f"{worker}: no new requests; finish what it has")
    with operation.begin(cell, "drain", f"drain {worker}"):
        roll.begin_drain(cell, worker, reason)
    roll.wait_drained(cell, worker)
    output.done(f"{worker} is drained; let it in again with: zimage undrain {worker}")


def undrain(worker: WorkerName, config: Config = None) -> None:
    """Let a drained worker take requests again."""
    cell = open_cell(config)
    _known_worker(cell, worker)
    with operation.begin(cell, "undrain", f"undrain {worker}"):
        roll.begin_undrain(cell, worker)
    roll.wait_open(cell, worker)
    output.done(f"{worker} takes requests")


def restart(
    workers: Annotated[
        list[str] | None, typer.Argument(help="Workers; all of them where none is named.")
    ] = None,
    config: Config = None,
    at_once: Annotated[
        bool, typer.Option("--all", help="All together: quicker, but nothing is drawn meanwhile.")
    ] = False,
    rolling: Annotated[
        bool, typer.Option("--rolling", help="One at a time, drawing goes on; the default.")
    ] = False,
) -> None:
    """Restart workers one at a time; each finishes first what it draws."""
    if at_once and (rolling or workers):
        raise typer.BadParameter("--all takes every worker at once: no names and no --rolling")
    cell = open_cell(config)
    names = workers or _all_workers(cell)
    for name in names:
        _known_worker(cell, name)
    how = ["--all"] if at_once else ["--rolling"] if rolling else []
    with operation.begin(cell, "restart", " ".join(["restart", *how, *names]), names) as rollout:
        if at_once:
            output.step(f"stop {', '.join(names)} at once; nothing is drawn until one is back")
            roll.restart_at_once(rollout, names)
        else:
            roll.restart(rollout, names)
    output.done(f"restarted: {', '.join(names)}")


def calibrate(
    worker: Annotated[
        str | None, typer.Argument(help="Whose device [default: the first worker's].")
    ] = None,
    config: Config = None,
    sizes: Annotated[
        str, typer.Option(help="WIDTHxHEIGHT,… [default: around the model's own].")
    ] = "",
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each.")] = 3,
    plot: Annotated[Path | None, typer.Option(help="Also draw an SVG (needs pygal).")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what drawing costs on a device. Workers use it from their next start."""
    cell = open_cell(config, create=True)
    name = worker or _all_workers(cell)[0]
    _known_worker(cell, name)
    with operation.begin(cell, "calibrate", f"calibrate {name}") as rollout:
        table = calibration.run(rollout, name, sizes, repeats)
    if plot is not None:
        calibration.draw_plot(table, plot)
    if as_json:
        output.as_json(table.as_json())
    else:
        output.console.print(calibration.shown(table))
        output.done(f"stored in {table.path}")


def trace(
    config: Config = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to look.")] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Show how busy the drawing threads keep their devices."""
    found = tracing.trace(open_cell(config), seconds)
    if as_json:
        output.as_json([asdict(t) for t in found])
    else:
        output.console.print(tracing.shown(found))


def _all_workers(cell: Cell) -> list[str]:
    if not cell.plan.names:
        raise CellError(f"no workers; {cell.has}")
    return list(cell.plan.names)


def _known_worker(cell: Cell, name: str) -> None:
    if name not in cell.plan.names:
        raise typer.BadParameter(f"no worker {name}; {cell.has}")
