"""``zimage up`` and ``down``: starting a cell, making it equal to cluster.toml, ending it."""

import os
import sys
import time
from typing import Annotated

import typer

from deploy import installation, output
from deploy.cell import Cell, CellError
from deploy.cli.options import Config, open_cell
from deploy.host import processes
from deploy.rollout import checks, converge, files, operation, picture, preview, roll
from deploy.rollout.down import down as end_cell
from deploy.rollout.interrupts import Interrupted
from deploy.supervision import supervise


def up(
    config: Config = None,
    foreground: Annotated[
        bool, typer.Option(help="Stay until the cell ends, as containers want it.")
    ] = False,
    draw: Annotated[bool, typer.Option(help="Draw a picture when ready.")] = True,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the command that was cut short.")
    ] = False,
    abort: Annotated[
        bool, typer.Option("--abort", help="End the command that is under way or was cut short.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would change, and why.")
    ] = False,
    join: Annotated[
        str,
        typer.Option(
            metavar="-",
            help="Join a cluster first, with the token of zimage hosts invite, which is read from "
            "standard input.",
        ),
    ] = "",
    address: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="With --join: where fronts find this machine. [default: its address towards the "
            "one that invites, port 7862]",
        ),
    ] = "",
) -> None:
    """Start the cell, or make a running one equal to cluster.toml."""
    if sum((foreground, resume, abort, dry_run)) > 1 or (join and (resume or abort or dry_run)):
        text = "--foreground, --resume, --abort and --dry-run exclude each other"
        raise typer.BadParameter(text + ("; --join goes with --foreground alone" if join else ""))
    if join or address:
        config = _join(config, join, address)
    cell = open_cell(config, create=not (abort or dry_run))
    if dry_run:
        raise typer.Exit(_dry_run(cell))
    if abort:
        aborted = operation.abort(cell)
        output.done(f"{operation.in_words(aborted)}; what it changed stays changed")
        output.say("  next     zimage status · zimage up makes the cell equal to cluster.toml")
        return
    if resume:
        _resume(cell, draw=draw)
        return
    if foreground:
        raise typer.Exit(_stay(cell, draw=draw))
    changed = _apply(cell, installation.command("up"))
    _greet(cell, changed=changed, draw=draw)


def down(
    config: Config = None,
    now: Annotated[bool, typer.Option("--now", help="Do not let drawings finish.")] = False,
) -> None:
    """Let drawings that run finish, then end every process of the cell."""
    cell = open_cell(config)
    if not processes.members(cell.layout.processes) and not supervise.unrecorded(cell.layout):
        output.done("nothing runs")
        return
    output.step("stop nginx, workers and guard" + ("" if now else ", drawings that run first"))
    with operation.begin(cell, "down", "down --now" if now else "down"):
        ended = end_cell(cell, now=now)
    output.done(f"down: {ended} processes ended, none is left")


def _join(config: Config, join: str, address: str) -> Config:
    """The file that the cell has from now on."""
    from deploy.cli.joins import join_cluster

    if join != "-":
        text = "--join -: the token is read from standard input, where no other user can see it"
        raise typer.BadParameter(text)
    return join_cluster(config, sys.stdin.readline().strip(), address)


def _greet(cell: Cell, *, changed: bool, draw: bool) -> None:
    converge.wait_ready(cell)
    if not changed:
        output.done("nothing to change: the cell runs as cluster.toml says")
    if draw and _somebody_draws(cell):
        drawn = picture.draw(cell)
        output.done(f"{drawn.worker} drew {drawn.path} in {drawn.seconds:.1f} s, through nginx")
    output.done(f"ready: {cell.url}")
    if public := cell.config.listen.public:
        output.say(f"  people   {public}")
    output.say(f"  logs     {cell.layout.logs_dir}")
    output.say("  next     zimage status · zimage logs -f · zimage down")


def _somebody_draws(cell: Cell) -> bool:
    if not cell.config.cluster.fronts:
        return bool(cell.workers())
    state = cell.state()
    return state is not None and bool(state["ready"])


def _apply(cell: Cell, doing: str, target: str = "", *, child: bool = False) -> bool:
    """``target``: what the command that was cut short went for; empty: whatever it is now."""
    with operation.begin(cell, "up", doing) as rollout:
        rendered = converge.prepare(cell)
        if target and converge.target(rendered) != target:
            raise CellError(
                "configuration or code have changed since it was cut short; zimage up --dry-run "
                "shows what would change, zimage up takes it on"
            )
        return converge.apply(rollout, rendered, child=child)


def _dry_run(cell: Cell) -> int:
    """1 where `up` would refuse to start."""
    bad = [finding for finding in checks.before_up(cell) if finding.level != "ok"]
    output.findings(bad)
    rendered = cell.render()
    if cell.layout.tmp_dir.is_dir():
        files.check_nginx(cell, rendered)
    if processes.members(cell.layout.processes):
        converge.show(files.changes(cell.layout.render_dir, rendered))
    changes = preview.changes(cell, rendered)
    for change in changes:
        output.step(f"would {change.what}: {change.why}")
    refused = any(finding.level == "fail" for finding in bad)
    if refused:
        output.fail("this machine cannot run that configuration: zimage up would touch nothing")
    elif not changes:
        output.done("nothing would change: the cell runs as cluster.toml says")
    else:
        output.done("nothing was touched")
    return int(refused)


def _resume(cell: Cell, *, draw: bool) -> None:
    record = operation.unfinished(cell)
    if record.of_versions:
        raise CellError(operation.in_words(record))
    output.step(f"go on: {operation.in_words(record).split('; next:')[0]}")
    match record.kind:
        case "restart":
            names = [name for name in record.left if name in cell.plan.names]
            with operation.begin(cell, "restart", record.holder.command, names) as rollout:
                roll.restart(rollout, names)
            output.done(f"restarted: {', '.join(names)}")
        case "down":
            with operation.begin(cell, "down", "down"):
                ended = end_cell(cell, now=False)
            output.done(f"down: {ended} processes ended, none is left")
        case "calibrate":
            again = " ".join(record.workers)
            raise CellError(f"a measurement cannot be resumed: zimage calibrate {again}")
        case _:
            _greet(cell, changed=_apply(cell, "up --resume", record.target), draw=draw)


def _stay(cell: Cell, *, draw: bool) -> int:
    """Start the cell and stay until it ends; 1 where supervisord was killed.

    A signal ends the cell in order, at whatever moment it comes.
    """
    try:
        _apply(cell, "up --foreground", child=True)
        return _attend(cell, draw=draw)
    except Interrupted:
        output.step("asked to end: stop nginx, workers and guard, drawings that run first")
        end_cell(cell, now=False)
        _reap()
        output.done("the cell has ended")
        return 0


def _attend(cell: Cell, *, draw: bool) -> int:
    leader = processes.leader(cell.layout.processes)
    if leader is None:
        raise CellError("supervisord ended at once; see zimage logs supervisord")
    try:
        _greet(cell, changed=True, draw=draw)
    except CellError as error:
        if leader.alive:
            output.fail(str(error))
    while leader.alive:
        _reap()
        time.sleep(0.2)
    _reap()
    if processes.members(cell.layout.processes):
        output.fail("supervisord was killed; workers go on, and zimage up takes them over")
        return 1
    output.done("the cell has ended")
    return 0


def _reap() -> None:
    # As process 1 of a container we inherit orphans; supervisord itself is a child as well.
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return
