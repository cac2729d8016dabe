"""Make what runs equal to what ``cluster.toml`` says, touching no more than what differs.

Checks, rendering and ``nginx -t`` come first: until they pass, the running cell is untouched.
"""

import hashlib
import signal
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from typing import Any

from deploy import drains, links, output, store
from deploy.cell import Cell, CellError
from deploy.host import nginx_process, orphans, processes
from deploy.host.orphans import Orphans
from deploy.rendering import certificate
from deploy.rendering.placement import model_base, model_source
from deploy.rendering.render import sidecars
from deploy.rollout import (
    checks,
    code,
    files,
    interrupts,
    model_pull,
    nginx_binary,
    nginx_digest,
    roll,
    wait,
)
from deploy.rollout.operation import Rollout
from deploy.supervision import supervise
from deploy.supervision.supervise import STOPPED, Changes
from worker.models.loading.hub import hub_model

_NOTHING = Changes((), (), ())
_GUARD_TIMEOUT_S = 20.0
_LINK_TIMEOUT_S = 5.0
_HOSTS_TIMEOUT_S = 20.0
_LIST_TIMEOUT_S = 5.0
"""Membership reads it every two seconds."""


def prepare(cell: Cell) -> dict[str, str]:
    """Check the machine, render, ask nginx, migrate the database; the files to apply.

    Nothing that runs is changed yet: migrations only add, so the workers of before go on.
    """
    bad = [f for f in checks.before_up(cell) if f.level != "ok"]
    output.findings(bad)
    if any(f.level == "fail" for f in bad):
        raise CellError(_untouched(cell, "this machine cannot run that configuration"))
    _download_model(cell)
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


def _download_model(cell: Cell) -> None:
    """Workers never do: their hub may be silent, and they would do it side by side."""
    if not cell.config.cluster.draws:
        return
    models = [model for model in cell.config.served if model.download]
    for source in (source_of(m) for m in models for source_of in (model_source, model_base)):
        if wanted := hub_model(source):
            try:
                model_pull.ensure(cell, wanted)
            except CellError as error:
                raise CellError(_untouched(cell, str(error))) from None


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
        show(changes)
    if take_certificate(cell):
        output.step("take on the certificate of [tls]; no connection ends")
    replaced = supervisord_differs(cell, rendered)
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
    """Until every worker that nobody drained takes requests, and one at least. A front is ready
    without a host: some may be away, and the first one joins later."""
    if cell.config.cluster.fronts:
        _wait_for_hosts(cell)
    if not cell.plan.names:
        return
    by_hand = drains.by_hand(cell.layout)
    names = [name for name in cell.plan.names if name not in by_hand]
    out = sorted(by_hand.keys() & set(cell.plan.names))
    for name in out:
        output.warn(f"{name} is {by_hand[name].in_words} and stays out: zimage undrain {name}")
    if not names:
        undrain = ", ".join(f"zimage undrain {name}" for name in out)
        raise CellError(f"the cell runs, and nobody draws: all workers are drained; {undrain}")
    count = f"{len(names)} worker{'s' if len(names) != 1 else ''}"
    wait.until_renewed(cell, names, cell.config.timeouts.up_timeout_s, f"waiting for {count}")


def _wait_for_hosts(cell: Cell) -> None:
    """For one of them; a front whose database is away, or that is the first, may know none."""
    if not processes.wait_for(lambda: _seen(cell) is not None, _GUARD_TIMEOUT_S):
        tail = cell.log_tail("guard", lines=3)
        raise CellError(f"the guard writes no state; it says:\n{tail}")
    if not processes.wait_for(lambda: bool((_seen(cell) or {}).get("hosts")), _LIST_TIMEOUT_S):
        output.warn("this front knows no host yet: zimage hosts invite NAME lets one join")
    elif not processes.wait_for(lambda: (_seen(cell) or {}).get("ready", False), _HOSTS_TIMEOUT_S):
        output.warn("no host takes requests; see zimage status")


def _seen(cell: Cell) -> dict[str, Any] | None:
    state = cell.state()
    return None if state is None or state["stale"] else state


def _require_code(cell: Cell, rendered: dict[str, str]) -> None:
    if not code.differs(cell, rendered):
        return
    output.step("the code has changed: check that it can be loaded")
    found = code.loads(cell.host.home, sidecars=sidecars(cell.config))
    if found.level == "fail":
        output.findings([found])
        raise CellError(_untouched(cell, "the code that lies here does not run"))


def show(changes: list[files.FileChange]) -> None:
    """File by file, the first lines of each."""
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
    rollout.say(f"start supervisord, {cell.plan.programs}")
    start = supervise.start_child if child else supervise.start_daemon
    with interrupts.deferred():  # until it is written down, nobody would find it again
        start(cell.layout, cell.config.cell.name, cell.host.home)
    if left.all:
        _take_over(rollout, left)
    else:
        cell.layout.cell_json.unlink(missing_ok=True)  # it tells of the cell before
    for name in ("guard", *sidecars(cell.config), *cell.plan.names, "nginx"):
        cell.supervisor.start(name)
    if left.nginxes:
        _update_nginx(rollout, _NOTHING)
    else:
        nginx_digest.require(cell)
    return True


def _take_over(rollout: Rollout, left: Orphans) -> None:
    cell = rollout.cell
    rollout.say(f"take over {len(left.all)} processes that outlived their supervisord")
    rollout.concerns([name for name in left.workers if name in cell.plan.names])
    _end(cell, processes.end(left.guards, 5.0, signal.SIGTERM))
    if left.links:
        _replace_links(cell, left)  # before the guard, which would start all at once
    cell.supervisor.start("guard")
    for name in cell.plan.names:
        if name not in left.workers:
            cell.supervisor.start(name)
    for name, orphan in left.workers.items():
        if name in cell.plan.names:
            output.step(f"{name}: drain, end process {orphan.pid}, start its successor")
            roll.take_over(rollout, name, orphan)
    _end(cell, orphans.end_attendants(left))
    cell.supervisor.start("nginx")  # adopts the one that runs
    unplanned = [p for name, p in left.workers.items() if name not in cell.plan.names]
    timeout_s = roll.stop_timeout_s(cell)
    _end(cell, processes.end([*unplanned, *left.others], timeout_s, signal.SIGTERM))


def _replace_links(cell: Cell, left: Orphans) -> None:
    """One after the other: what was on its way through one is asked again through another."""
    known, held = cell.programs(), links.read(cell.layout)
    old = {link: p for link in held for p in left.links if _leads(cell, link, p)}
    for link in held:
        if links.program(link) in known:
            cell.supervisor.start(links.program(link))
            processes.wait_for(partial(_is_new, cell, link, old.get(link)), _LINK_TIMEOUT_S)
        if link in old:
            group = [p for p in left.links if p.group == old[link].group]
            _end(cell, processes.end(group, _LINK_TIMEOUT_S, signal.SIGKILL))
    _end(cell, processes.end(left.links, _LINK_TIMEOUT_S, signal.SIGKILL))


def _leads(cell: Cell, link: str, process: processes.Process) -> bool:
    """Whether it is the master of ``link``."""
    leads = process.pid == process.group
    return leads and str(cell.layout.link_conf(link)) in process.command


def _is_new(cell: Cell, link: str, old: processes.Process | None) -> bool:
    """Whether another process than ``old`` has written down that it is the link, which it does once
    it listens."""
    try:
        pid = int(cell.layout.link_pid(link).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return old is None or pid != old.pid


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


def supervisord_differs(cell: Cell, rendered: dict[str, str]) -> bool:
    """Whether supervisord must be replaced: by its own settings, or it does not answer."""
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
    if left.guards or left.workers or left.links:
        _take_over(rollout, left)  # what an `up` that failed half-way has left
    changed = [name for name in changes.changed if name in cell.plan.names]
    if changes.removed:
        _roll(rollout, changed)  # those that go draw meanwhile: guard and nginx know them still
    acted |= _update_guard(rollout, changes)
    for name in set(changes.changed) & set(sidecars(cell.config)):
        rollout.say(f"restart {name}; nobody misses it for a moment")
        roll.reload_program(cell, name)
    for name in changes.added:
        supervisor.add(name)
        if not links.is_program(name):  # those the guard starts
            rollout.say(f"add {name}")
            supervisor.start(name)
    _renew_links(rollout, changes)
    acted |= _start_what_stands(rollout, changes)
    _require_another(cell, changes.removed)
    acted |= _update_nginx(rollout, changes)
    for name in changes.removed:
        if not links.is_program(name):
            rollout.say(f"remove {name}: it finishes what it draws")
        supervisor.stop(name, roll.stop_timeout_s(cell))
        supervisor.remove(name)
    _remove_gates(cell)
    if not changes.removed:
        if changes.added and changed:
            _await_old_nginx(rollout)
        _roll(rollout, changed)
    return acted


def _update_guard(rollout: Rollout, changes: Changes) -> bool:
    cell = rollout.cell
    if "guard" not in changes.changed and not guard_differs(
        cell, cell.layout.guard_json.read_text()
    ):
        return False
    rollout.say("restart the guard; the pool stays as it is meanwhile")
    roll.reload_program(cell, "guard")
    wanted = cell.layout.guard_json.read_text()
    if not processes.wait_for(lambda: not guard_differs(cell, wanted), _GUARD_TIMEOUT_S):
        tail = cell.log_tail("guard", lines=3)
        raise CellError(f"the guard does not run with its new settings; it says:\n{tail}")
    return True


def _renew_links(rollout: Rollout, changes: Changes) -> None:
    """One after the other, with a moment for the guard to hear the host again: what was on its way
    goes to another host."""
    cell = rollout.cell
    for name in filter(links.is_program, changes.changed):
        if cell.supervisor.states()[name].state in STOPPED:
            cell.supervisor.remove(name)
            cell.supervisor.add(name)
            continue
        rollout.say(f"restart {name}: its command changed")
        roll.reload_program(cell, name)
        processes.wait_for(partial(_is_in, cell, name), _LINK_TIMEOUT_S)


def _is_in(cell: Cell, program: str) -> bool:
    hosts = (_seen(cell) or {}).get("hosts", ())
    return any(links.program(host["link"]) == program and host["open"] for host in hosts)


def _require_another(cell: Cell, removed: Collection[str]) -> None:
    """Before those that draw go: until one of those that stay does. ``CellError``: none can."""
    if not any(cell.layout.gate(name).exists() for name in removed):
        return  # a closed gate leads nowhere: none of them draws
    by_hand = drains.by_hand(cell.layout)
    stay = [name for name in cell.plan.names if name not in by_hand]
    if not stay:
        undrain = ", ".join(f"zimage undrain {name}" for name in cell.plan.names)
        raise CellError(
            f"nobody would draw without {', '.join(removed)}, who stay: all others are drained; "
            f"{undrain}, then zimage up"
        )
    timeout_s, title = (
        cell.config.timeouts.up_timeout_s,
        f"{', '.join(removed)} go once another draws",
    )
    for alike in _by_model(cell, removed, stay):
        wait.until_one_is_open(cell, alike, timeout_s, title)


def _by_model(cell: Cell, removed: Collection[str], stay: list[str]) -> list[list[str]]:
    """Those of ``stay`` of which one must draw: of each model that ``removed`` draw with and that
    stays, those that have it. Of one model, all."""
    planned = {worker.name: worker.model for worker in cell.plan.workers}
    seen = cell.workers()
    lost = {seen[name].get("model", "") for name in removed if name in seen} - {""}
    alike = [[name for name in stay if planned[name] == model] for model in sorted(lost)]
    return [names for names in alike if names] or [stay]


def _remove_gates(cell: Cell) -> None:
    for gate in cell.layout.pool_dir.glob("*.sock"):
        if gate.stem not in cell.plan.gates:
            gate.unlink(missing_ok=True)


def _roll(rollout: Rollout, names: list[str]) -> None:
    names = roll.closed_first(rollout.cell, names)
    rollout.concerns(names)
    for done, name in enumerate(names, start=1):
        output.step(f"{name}: drain, restart as changed, open ({done} of {len(names)})")
        roll.replace(rollout, name)


def _start_what_stands(rollout: Rollout, changes: Changes) -> bool:
    supervisor = rollout.cell.supervisor
    stopped = [s.name for s in supervisor.states().values() if s.state in STOPPED]
    stopped = [n for n in stopped if n not in changes.removed and not links.is_program(n)]
    for name in stopped:
        rollout.say(f"start {name}, which was stopped")
        supervisor.start(name)
    return bool(stopped)


def _update_nginx(rollout: Rollout, changes: Changes) -> bool:
    cell, reloaded_at = rollout.cell, None
    if "nginx" in changes.changed:
        rollout.say("restart nginx: its command changed")
        roll.reload_program(cell, "nginx")
    elif nginx_binary.differs(cell) and nginx_binary.hands_over(cell):
        rollout.say("nginx's program changed: the new one takes over, the old one finishes")
        _await_nginx(cell)
        nginx_binary.hand_over(cell)
    elif nginx_binary.differs(cell):
        rollout.say("restart nginx: its program changed; it finishes what is open first")
        roll.reload_program(cell, "nginx")
    elif nginx_digest.running(cell) == nginx_digest.rendered(cell):
        return False
    else:
        rollout.say("reload nginx; open connections stay")
        _await_nginx(cell)
        reloaded_at = nginx_digest.errors_bytes(cell)
        cell.supervisor.signal("nginx", "HUP")
        for link in nginx_process.links_of(cell.layout):
            nginx_process.tell(*link, signal.SIGHUP)
    nginx_digest.require(cell, reloaded_at=reloaded_at)
    return True


def _await_old_nginx(rollout: Rollout) -> None:
    """Until nginx's processes of before the reload are gone: they know the workers of before alone,
    and what those hand back would be refused there."""
    cell = rollout.cell

    def gone() -> bool:
        members = processes.members(cell.layout.processes)
        return not any("nginx: worker process is shutting down" in p.command for p in members)

    if not gone():
        rollout.say("wait for nginx's answers under way: they know no new worker")
        processes.wait_for(gone, cell.config.nginx.worker_shutdown_timeout_s, every_s=0.2)


def _await_nginx(cell: Cell) -> None:
    # One that has just been started would die of a signal.
    processes.wait_for(lambda: cell.supervisor.states()["nginx"].state == "RUNNING", 10.0)


def guard_differs(cell: Cell, settings: str) -> bool:
    """Whether the guard says that it runs with others than ``settings``, or says nothing."""
    state = cell.state()
    return state is None or state.get("settings") != _digest(settings)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
