"""``zimage``: the verbs of an operator. Exit code 0 done, 1 failed, 2 misuse."""

import errno
import getpass
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live

from deploy import (
    backup as backups,
)
from deploy import installation, output
from deploy.cell import Cell, CellError
from deploy.cli import chaos, jobs, keys, usage, versions
from deploy.cli import trace as tracing
from deploy.cli.options import AsJson, Config
from deploy.cli.options import open_cell as _cell
from deploy.config import ConfigError
from deploy.host import processes
from deploy.host.account import AccountError
from deploy.host.utf8 import speak_utf8
from deploy.rendering.certificate import CertificateError
from deploy.rollout import calibrate as calibration
from deploy.rollout import (
    checks,
    converge,
    files,
    interrupts,
    operation,
    picture,
    preview,
    roll,
)
from deploy.rollout.down import down as end_cell
from deploy.rollout.interrupts import Interrupted
from deploy.rollout.unit import render_unit
from deploy.supervision import supervise
from deploy.supervision.supervise import SupervisorError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(keys.app, name="keys")
app.add_typer(jobs.app, name="jobs")
app.command(name="usage")(usage.usage)
app.command(name="chaos")(chaos.chaos)
app.command(name="upgrade")(versions.upgrade)
app.command(name="rollback")(versions.rollback)


@app.callback()
def zimage(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=versions.show_version, help="Show the version."
        ),
    ] = False,
) -> None:
    """Run a cell: GPU workers behind nginx, kept alive by supervisord and a guard."""


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}

WorkerName = Annotated[str, typer.Argument(help="Name of a worker, such as w1.")]


@app.command()
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
) -> None:
    """Start the cell, or make a running one equal to cluster.toml."""
    if sum((foreground, resume, abort, dry_run)) > 1:
        text = "--foreground, --resume, --abort and --dry-run exclude each other"
        raise typer.BadParameter(text)
    cell = _cell(config, create=not (abort or dry_run))
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
    changed = _apply(cell, "up")
    _greet(cell, changed=changed, draw=draw)


@app.command()
def down(
    config: Config = None,
    now: Annotated[bool, typer.Option("--now", help="Do not let drawings finish.")] = False,
) -> None:
    """End the cell: drawings that run are finished, then every process goes."""
    cell = _cell(config)
    if not processes.members(cell.layout.processes) and not supervise.unrecorded(cell.layout):
        output.done("nothing runs")
        return
    output.step("stop nginx, workers and guard" + ("" if now else ", drawings that run first"))
    with operation.begin(cell, "down", "down --now" if now else "down"):
        ended = end_cell(cell, now=now)
    output.done(f"down: {ended} processes ended, none is left")


@app.command()
def status(
    config: Config = None,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again every second.")] = False,
) -> None:
    """Show alarms, pool and workers. Exit code 0 only while the pool is known to take requests."""
    cell = _cell(config)
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


@app.command()
def plan(config: Config = None, as_json: AsJson = False) -> None:
    """Show which workers cluster.toml makes on this machine, and why."""
    cell = _cell(config)
    if as_json:
        output.as_json([asdict(w) for w in cell.plan.workers])
        return
    for worker in cell.plan.workers:
        limit = f", {worker.vram_limit_gib:g} GiB" if worker.vram_limit_gib else ""
        threads = f"{worker.threads} thread{'s' if worker.threads > 1 else ''}"
        output.say(f"{worker.name}  {worker.device_name}{limit}, {threads}  ({worker.reason})")


@app.command()
def render(
    config: Config = None,
    to: Annotated[
        Path | None, typer.Option(help="Write the files into this directory instead.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only ask nginx whether it takes them.")
    ] = False,
) -> None:
    """Show what `up` would change in the rendered files; touches no running cell."""
    cell = _cell(config)
    rendered = cell.render()
    if check:
        cell.layout.create()
        files.check_nginx(cell, rendered)
        output.done(
            f"nginx {'.'.join(map(str, cell.host.nginx_version))} takes the rendered configuration"
        )
        return
    if to is not None:
        to.mkdir(parents=True, exist_ok=True)
        files.write(to, rendered)
        output.done(f"{len(rendered)} files in {to}")
        return
    changes = files.changes(cell.layout.render_dir, rendered)
    for change in changes:
        output.step(change.summary)
        output.say("\n".join(f"    {line}" for line in change.shown))
    if not changes:
        output.done(f"{cell.layout.render_dir} is up to date")


@app.command()
def reload(config: Config = None) -> None:
    """Take on a renewed certificate, for certbot's deploy hook. Nothing restarts or ends."""
    cell = _cell(config)
    if cell.certificate is None:
        raise CellError("tls: this cell speaks plain http; see [tls] in deploy/cluster.toml")
    with operation.begin(cell, "reload", "reload"):
        changed = converge.take_certificate(cell)
    until = f"{', '.join(cell.certificate.names)}, until {cell.certificate.ends:%Y-%m-%d}"
    output.done(f"{'new certificate' if changed else 'the same certificate'}: {until}")


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="Where to; .gz compresses it.")],
    config: Config = None,
    images: Annotated[bool, typer.Option("--images", help="With the stored pictures.")] = False,
) -> None:
    """Write database, keys' secret and configuration to one file. The cell may run."""
    path = file.absolute()

    def write() -> None:
        count = backups.write(
            _cell(config), out, images=images, compress=backups.is_compressed(path)
        )
        if images:
            output.say(f"  pictures: {count}")

    with backups.whole(path) as out:
        _in_child(write)
    output.done(f"{path}: {path.stat().st_size / 2**20:.1f} MiB; keep it secret")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="What `zimage backup` wrote.")],
    config: Config = None,
) -> None:
    """Put a backup back. The cell must be down; its present database is kept beside."""
    path = file.absolute()
    try:
        opened = path.open("rb")  # before root becomes the cell's user, who may not
    except OSError as error:
        raise CellError(f"{path} cannot be restored: {error.strerror}") from None
    with opened:
        cell = _cell(config)
        with operation.begin(cell, "restore", "restore"):
            done = backups.restore(cell, path, opened)
    output.done(f"restored {file}: database, pictures: {done.pictures}")
    if done.aside:
        output.say(f"  before   {done.aside}")
    output.say("  next     zimage up")


@app.command()
def systemd(config: Config = None) -> None:
    """Print a unit that runs the cell from boot on, as whoever prints it."""
    user = "" if os.getuid() == 0 else getpass.getuser()
    output.raw(render_unit(_cell(config), user) + "\n")


@app.command()
def drain(
    worker: WorkerName,
    config: Config = None,
    reason: Annotated[str, typer.Option(help="Why, for whoever finds it drained.")] = "",
) -> None:
    """Take a worker out of the pool and let it finish; it stays out until undrain."""
    cell = _cell(config)
    _known_worker(cell, worker)
    output.step(f"{worker}: no new requests; finish what it has")
    with operation.begin(cell, "drain", f"drain {worker}"):
        roll.begin_drain(cell, worker, reason)
    roll.wait_drained(cell, worker)
    output.done(f"{worker} is drained; let it in again with: zimage undrain {worker}")


@app.command()
def undrain(worker: WorkerName, config: Config = None) -> None:
    """Let a drained worker take requests again."""
    cell = _cell(config)
    _known_worker(cell, worker)
    with operation.begin(cell, "undrain", f"undrain {worker}"):
        roll.begin_undrain(cell, worker)
    roll.wait_open(cell, worker)
    output.done(f"{worker} takes requests")


@app.command()
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
    """Restart workers one at a time, after they have finished what they draw."""
    if at_once and (rolling or workers):
        raise typer.BadParameter("--all takes every worker at once: no names and no --rolling")
    cell = _cell(config)
    names = workers or list(cell.plan.names)
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


@app.command()
def logs(
    program: Annotated[
        str | None,
        typer.Argument(help="A worker, guard, nginx, nginx-error, access or supervisord."),
    ] = None,
    config: Config = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the end.")] = 40,
) -> None:
    """Show the end of the cell's logs."""
    cell = _cell(config)
    paths = _logs(cell, program)
    options = ["-n", str(lines), *(["-F"] if follow else [])]
    raise typer.Exit(output.lines_of(["tail", *options, *map(str, paths)]))


@app.command()
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
    """Measure what drawing costs on a worker's device; workers use it from their next start."""
    cell = _cell(config, create=True)
    name = worker or cell.plan.names[0]
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


@app.command()
def trace(
    config: Config = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to look.")] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Show what share of their time the drawing threads spend beside the device."""
    found = tracing.trace(_cell(config), seconds)
    if as_json:
        output.as_json([asdict(t) for t in found])
    else:
        output.console.print(tracing.shown(found))


@app.command()
def doctor(config: Config = None, as_json: AsJson = False) -> None:
    """Check machine, configuration and cell; each finding with its remedy."""
    cell = _cell(config)
    found = checks.doctor(cell)
    if as_json:
        output.as_json([asdict(f) for f in found])
    else:
        output.findings(found)
    raise typer.Exit(1 if any(f.level == "fail" for f in found) else 0)


def main() -> None:
    """Entry point: turns what may go wrong into one clear message and an exit code."""
    installation.hand_over(sys.argv[1:])
    speak_utf8()
    os.umask(0o077)  # logs, state and what programs inherit: this user's alone
    interrupts.install()
    sys.exit(run(app))


def run(command: Callable[..., Any]) -> int:
    """Exit code of ``command``; click itself ends with 2 on misuse."""
    try:
        command()
    except ConfigError as error:
        output.fail(f"{error.path} is wrong; nothing was touched")
        for problem in error.problems:
            output.errors.print(f"  {problem}")
    except (CellError, CertificateError, SupervisorError, AccountError) as error:
        output.fail(str(error))
    except PermissionError as error:
        output.fail(f"{error}; run this as the user who ran `zimage up`, or as root")
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        output.fail(f"the disk is full: {error}; make room (df -h), then the same command again")
    except Interrupted as signal_seen:
        output.fail("interrupted: zimage status says what runs, zimage up completes it")
        return signal_seen.exit_code
    except SystemExit as ended:
        return int(ended.code or 0) if not isinstance(ended.code, str) else 1
    else:
        return 0
    return 1


def _in_child(work: Callable[[], None]) -> None:
    """Do ``work``, which may become another user, while this process stays who it is."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = run(work)
        sys.stdout.flush()
        os._exit(code)
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    if code:
        raise typer.Exit(code if code > 0 else 1)


def _known_worker(cell: Cell, name: str) -> None:
    if name not in cell.plan.names:
        known = ", ".join(cell.plan.names)
        raise typer.BadParameter(f"no worker {name}; this cell has {known}")


def _greet(cell: Cell, *, changed: bool, draw: bool) -> None:
    converge.wait_ready(cell)
    if not changed:
        output.done("nothing to change: the cell runs as cluster.toml says")
    if draw and cell.workers():
        drawn = picture.draw(cell)
        output.done(f"{drawn.worker} drew {drawn.path} in {drawn.seconds:.1f} s, through nginx")
    output.done(f"ready: {cell.url}")
    output.say(f"  logs     {cell.layout.logs_dir}")
    output.say("  next     zimage status · zimage logs -f · zimage down")


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
    rollout = operation.last(cell)
    state["rollout"] = None if rollout is None else operation.as_json(rollout)
    state["cell"] = {
        "name": cell.config.cell.name,
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


def _logs(cell: Cell, program: str | None) -> list[Path]:
    present = {p.stem: p for p in sorted(cell.layout.logs_dir.glob("*.log"))}
    if program is None and present:
        return [path for name, path in present.items() if name != "access"]
    if program in present:
        return [present[program]]
    known = ", ".join(present) or "none yet"
    raise typer.BadParameter(f"no log {program or ''}; there are: {known}")


if __name__ == "__main__":
    main()
