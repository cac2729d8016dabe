"""``zimage status`` and ``doctor``: how a cell and its machine are."""

import time
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.live import Live

from deploy import installation, output
from deploy.cell import Cell
from deploy.cli import hosts
from deploy.cli.cluster import open_member
from deploy.cli.options import AsJson, Config, open_cell
from deploy.host import processes
from deploy.rollout import checks, operation
from deploy.rollout.interrupts import Interrupted


def status(
    config: Config = None,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again every second.")] = False,
    of_hosts: Annotated[
        bool, typer.Option("--hosts", help="The machines of the cluster instead.")
    ] = False,
) -> None:
    """Show alarms, pool and workers. Exit code 0 only while the pool is known to take requests."""
    if of_hosts:
        raise typer.Exit(hosts.show(open_member(config), as_json=as_json))
    cell = open_cell(config)
    if watch and not as_json:
        _watch(cell)
        return
    state = _status(cell)
    if as_json:
        output.as_json(state)
    elif state["cell"]["running"]:
        output.console.print(output.status(state))
    else:
        output.fail("the cell is down; start it with: zimage up")
    raise typer.Exit(0 if state["ready"] and not state["stale"] else 1)


def doctor(config: Config = None, as_json: AsJson = False) -> None:
    """Check machine, configuration and cell. Each finding has its remedy."""
    cell = open_cell(config)
    found = checks.doctor(cell)
    if as_json:
        output.as_json([asdict(f) for f in found])
    else:
        output.findings(found)
    raise typer.Exit(1 if any(f.level == "fail" for f in found) else 0)


def _status(cell: Cell) -> dict[str, Any]:
    """The guard's state, and what it cannot say: whether anything runs, and for how long."""
    running = processes.members(cell.layout.processes)
    leader = processes.leader(cell.layout.processes)
    state = cell.state() if running else None
    empty: dict[str, Any] = {
        "at": None,
        "stale": True,
        "age_s": 0,
        "alarms": [],
        "events": [],
        "ready": False,
    }
    pool = {"open": 0, "of": len(cell.plan.names)}
    state = state or {**empty, "pool": pool, "workers": []}
    programs = {n: asdict(p) for n, p in cell.programs().items()}
    state["rollout"] = operation.told(cell)
    state["cell"] = {
        "name": cell.config.cell.name,
        "version": installation.version(),
        "url": cell.url,
        "running": bool(running),
        "supervisor": bool(programs),
        "uptime_s": None if leader is None else round(processes.age_s(leader)),
        "programs": programs,
    }
    return state


def _watch(cell: Cell) -> None:
    with Live(console=output.console, screen=True, auto_refresh=False) as display:
        try:
            while True:
                display.update(output.status(_status(cell)), refresh=True)
                time.sleep(1.0)
        except Interrupted:
            return
