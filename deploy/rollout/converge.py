"""Make what runs equal to what ``cluster.toml`` says, touching no more than what differs.

Checks, rendering and ``nginx -t`` come first: until they pass, the running cell is untouched.
"""

import hashlib
import signal
from contextlib import suppress

from deploy import drains, output, store
from deploy.cell import Cell, CellError
from deploy.host import orphans, processes
from deploy.host.orphans import Orphans
from deploy.rendering import certificate
from deploy.rollout import checks, code, files, interrupts, nginx_digest, roll, wait
from deploy.rollout.operation import Rollout
from deploy.supervision import supervise
from deploy.supervision.supervise import STOPPED, Changes

_NOTHING = Changes((), (), ())


def prepare(cell: Cell) -> dict[str, str]:
    """Check the machine, render, ask nginx, migrate the database; the files to apply.

    Nothing that runs is changed yet: migrations only add, so the workers of before go on.
    """
    bad = [f for f in checks.before_up(cell) if f.level != "ok"]
    output.findings(bad)
    if any(f.level == "fail" for f in bad):
        raise CellError(_untouched(cell, "this machine cannot run that configuration"))
    rendered = cell.render()
    _require_code(cell, rendered)
    cell.layout.create()
    try:
        files.check_nginx(cell, rendered)
        store.migrate(cell)
        if cell.config.listen.auth == "keys":
            store.secret_for(cell)  # workers never make it
    except CellError as error:
        raise CellError(_untouched(cell, str(error))) from None
    return rendered


def target(rendered: dict[str, str]) -> str:
    """What tells one set of rendered files from another."""
    return _digest("\0".join(f"{name}\0{rendered[name]}" for name in sorted(rendered)))[:16]


def apply(rollout: Rollout, rendered: dict[str, str], *, child: bool = False) -> bool:
    """Start what does not run and change what differs, drawing all the while.

    Whether anything was started, restarted or reloaded. ``child``: a supervisord that must be
    started becomes a child of this process.
    """
    cell = rollout.cell
    rollout.aim(target(rendered))
    changes = files.changes(cell.layout.render_dir, rendered)
    first = not processes.members(cell.layout.processes)
    if changes and not first:
        _show(changes)
    if take_certificate(cell):
        output.step("take on the certificate of [tls]; no connection ends")
    replaced = _supervisord_differs(cell, rendered)
    files.put(cell.layout.render_dir, rendered)
    if replaced:
        _let_go(cell)
    up = processes.leader(cell.layout.processes) is not None
    acted = _update(rollout) if up else _start(rollout, child=child)
    files.prune(cell.layout.render_dir, rendered)  # no worker runs with an older document now
    return acted


def take_certificate(cell: Cell) -> bool:
    """Show the certificate that ``cluster.toml`` names; whether it is another one than before.

    nginx finds it with its next handshake: no connection ends."""
    if cell.certificate is None:
        cell.layout.certificate_json.unlink(missing_ok=True)  # the guard watches its end
        return False
    return certificate.install(cell.certificate, cell.layout)


def wait_ready(cell: Cell) -> None:
    """Until every worker that nobody drained takes requests, and one at least."""
    by_hand = drains.by_hand(cell.layout)
    names = [name for name in cell.plan.names if name not in by_hand]
    out = sorted(by_hand.keys() & set(cell.plan.names))
    for name in out:
        output.warn(f"{name} is {by_hand[name].in_words} and stays out: zimage undrain {name}")
    if not names:
        undrain = ", ".join(f"zimage undrain {name}" for name in out)
        raise CellError(f"the cell runs, and nobody draws: all workers are drained; {undrain}")
    count = f"{len(names)} worker{'s' if len(names) != 1 else ''}"
    wait.until_open(cell, names, cell.config.timeouts.up_timeout_s, f"waiting for {count}")


def _require_code(cell: Cell, rendered: dict[str, str]) -> None:
    if not code.differs(cell, rendered):
        return
    output.step("the code has changed: check that it can be loaded")
    found = code.loads(cell.host.home)
    if found.level == "fail":
        output.findings([found])
        raise CellError(_untouched(cell, "the code that lies here does not run"))


def _show(changes: list[files.FileChange]) -> None:
    for change in changes:
        output.step(change.summary)
        for line in change.shown:
            output.say(f"    {line}")


def _untouched(cell: Cell, text: str) -> str:
    running = bool(processes.members(cell.layout.processes))
    return f"{text}\nThe running cell is untouched." if running else f"{text}\nNothing was started."


# From nothing, or from the orphans of a killed supervisord


def _start(rollout: Rollout, *, child: bool) -> bool:
    cell = rollout.cell
    left = orphans.find(cell.layout)
    _remove_stale_sockets(cell)
    output.step(f"start supervisord, {len(cell.plan.names)} workers, guard and nginx")
    start = supervise.start_child if child else supervise.start_daemon
    with interrupts.deferred():  # until it is written down, nobody would find it again
        start(cell.layout, cell.config.cell.name, cell.host.home)
    if left.all:
        _take_over(rollout, left)
    else:
        cell.layout.cell_json.unlink(missing_ok=True)  # it tells of the cell before
    for name in ("guard", *cell.plan.names, "nginx"):
        cell.supervisor.start(name)
    _note_guard(cell)
    if left.nginxes:
        _update_nginx(cell, _NOTHING)
    else:
        nginx_digest.require(cell)
    return True


def _take_over(rollout: Rollout, left: Orphans) -> None:
    cell = rollout.cell
    rollout.say(f"take over {len(left.all)} processes that outlived their supervisord")
    rollout.concerns([name for name in left.workers if name in cell.plan.names])
    _end(cell, processes.end(left.guards, 5.0, signal.SIGTERM))
    cell.supervisor.start("guard")
    for name in cell.plan.names:
        if name not in left.workers:
            cell.supervisor.start(name)
    for name, orphan in left.workers.items():
        if name in cell.plan.names:
            output.step(f"{name}: drain, end process {orphan.pid}, start its successor")
            roll.take_over(rollout, name, orphan)
    cell.supervisor.start("nginx")  # adopts the one that runs
    unplanned = [p for name, p in left.workers.items() if name not in cell.plan.names]
    timeout_s = roll.stop_timeout_s(cell)
    _end(cell, processes.end([*unplanned, *left.others], timeout_s, signal.SIGTERM))


def _end(cell: Cell, survivors: list[processes.Process]) -> None:
    if survivors:
        pids = ", ".join(str(p.pid) for p in survivors)
        raise CellError(f"processes {pids} of the old cell survive SIGKILL; see their state in ps")


def _let_go(cell: Cell) -> None:
    """Kill supervisord alone: what it started goes on, and is taken over by the next one."""
    leader = processes.leader(cell.layout.processes)
    if leader is not None:
        output.step("supervisord's own settings differ: replace it, workers go on meanwhile")
        leader.send(signal.SIGKILL)
        _end(cell, processes.wait_gone([leader], 5.0))


def _supervisord_differs(cell: Cell, rendered: dict[str, str]) -> bool:
    if processes.leader(cell.layout.processes) is None:
        return False
    if not cell.supervisor.answers():
        output.warn("supervisord is there but does not answer: it is replaced")
        return True
    try:
        running = cell.layout.supervisord_conf.read_text()
    except OSError:
        return False
    return _own_part(running) != _own_part(rendered["supervisord.conf"])


def _own_part(text: str) -> str:
    """The sections of supervisord itself, without comments."""
    own = text.split("[program:", 1)[0]
    return "\n".join(line for line in own.splitlines() if not line.startswith(";"))


def _remove_stale_sockets(cell: Cell) -> None:
    for path in (cell.layout.supervisor_socket, cell.layout.supervisor_pid):
        with suppress(FileNotFoundError):
            path.unlink()


# From one configuration to the next


def _update(rollout: Rollout) -> bool:
    cell = rollout.cell
    supervisor = cell.supervisor
    changes = supervisor.reread()
    acted = changes != _NOTHING
    left = orphans.find(cell.layout)
    if left.guards or left.workers:
        _take_over(rollout, left)  # what an `up` that failed half-way has left
    if "guard" in changes.changed or _guard_differs(cell):
        output.step("restart the guard; the pool stays as it is meanwhile")
        roll.reload_program(cell, "guard")
        _note_guard(cell)
        acted = True
    for name in changes.added:
        output.step(f"add {name}")
        supervisor.add(name)
        supervisor.start(name)
    acted |= _start_what_stands(cell)
    acted |= _update_nginx(cell, changes)
    for name in changes.removed:
        output.step(f"remove {name}: it finishes what it draws")
        supervisor.stop(name, roll.stop_timeout_s(cell))
        supervisor.remove(name)
        cell.layout.gate(name).unlink(missing_ok=True)
    _roll(rollout, [n for n in changes.changed if n in cell.plan.names])
    return acted


def _roll(rollout: Rollout, names: list[str]) -> None:
    names = roll.closed_first(rollout.cell, names)
    rollout.concerns(names)
    for done, name in enumerate(names, start=1):
        output.step(f"{name}: drain, restart as changed, open ({done} of {len(names)})")
        roll.replace(rollout, name)


def _start_what_stands(cell: Cell) -> bool:
    stopped = [s.name for s in cell.supervisor.states().values() if s.state in STOPPED]
    for name in stopped:
        output.step(f"start {name}, which was stopped")
        cell.supervisor.start(name)
    return bool(stopped)


def _update_nginx(cell: Cell, changes: Changes) -> bool:
    if "nginx" in changes.changed:
        output.step("restart nginx: its command changed")
        roll.reload_program(cell, "nginx")
    elif nginx_digest.running(cell) == nginx_digest.rendered(cell):
        return False
    else:
        _reload_nginx(cell)
    nginx_digest.require(cell)
    return True


def _reload_nginx(cell: Cell) -> None:
    # One that has just been started would die of the signal.
    processes.wait_for(lambda: cell.supervisor.states()["nginx"].state == "RUNNING", 10.0)
    output.step("reload nginx; open connections stay")
    cell.supervisor.signal("nginx", "HUP")


def _guard_differs(cell: Cell) -> bool:
    return _noted(cell, "guard") != _digest(cell.layout.guard_json.read_text())


def _note_guard(cell: Cell) -> None:
    _note(cell, "guard", cell.layout.guard_json.read_text())


def _note(cell: Cell, program: str, text: str) -> None:
    """Remember which files ``program`` runs with: those on disk may be newer than it."""
    cell.layout.applied(program).write_text(_digest(text))


def _noted(cell: Cell, program: str) -> str:
    try:
        return cell.layout.applied(program).read_text()
    except OSError:
        return ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
