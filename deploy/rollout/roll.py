"""One worker after another: out of the pool, restarted, in again. Drawing goes on all the while.

The guard does the pool's part: a flag file drains a worker, and its removal lets it in again.
"""

import signal
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any

from deploy import drains, output
from deploy.cell import Cell, CellError
from deploy.host import processes
from deploy.host.processes import Process
from deploy.rollout import interrupts, operation, wait
from deploy.rollout.operation import Rollout
from deploy.rollout_record import Step
from deploy.supervision.supervise import STOPPED

_MARGIN_S = 20.0
_STAY_OUT = ("drained", "fatal")
"""Who does not come back by itself."""


def begin_drain(cell: Cell, name: str, reason: str = "") -> None:
    """Take ``name`` out of the pool until ``begin_undrain``."""
    require_known(cell, name)
    drains.put(cell.layout, name, operation.person(), reason)


def wait_drained(cell: Cell, name: str) -> None:
    """Until ``name``, which is being drained, has finished what it had."""
    wait.until_drained(cell, name, cell.config.timeouts.drain_timeout_s + _MARGIN_S)


def begin_undrain(cell: Cell, name: str) -> None:
    """Let ``name`` in again."""
    require_known(cell, name)
    drains.remove(cell.layout, name)


def wait_open(cell: Cell, name: str) -> None:
    """Until ``name`` takes requests."""
    wait.until_open(cell, [name], _start_timeout_s(cell), f"opening {name}")


def restart(rollout: Rollout, names: Collection[str]) -> None:
    """Restart ``names`` one by one; stops at the first that does not come back."""
    cell = rollout.cell
    for name in names:
        require_known(cell, name)
    names = closed_first(cell, names)
    for done, name in enumerate(names):
        output.step(f"{name}: drain, restart, warm up, open ({done + 1} of {len(names)})")
        try:
            _cycle(rollout, name, partial(_restart, cell, name))
        except CellError as error:
            left = ", ".join(names[done + 1 :])
            raise CellError(f"{error}\n{_untouched(left)}") from None


def restart_at_once(rollout: Rollout, names: Collection[str]) -> None:
    """Restart ``names`` together: quicker, and nothing is drawn until the first is back."""
    cell = rollout.cell
    with interrupts.deferred():
        for name in names:
            rollout.enter(name, Step.RESTARTING)
        for name in names:
            cell.supervisor.stop(name, stop_timeout_s(cell))
        for name in names:
            cell.supervisor.start(name)
            rollout.enter(name, Step.OPENING)
    by_hand = drains.by_hand(cell.layout)
    waited_for = [name for name in names if name not in by_hand]
    wait.until_open(cell, waited_for, _start_timeout_s(cell), "starting")
    for name in names:
        rollout.enter(name, Step.DONE)


def closed_first(cell: Cell, names: Collection[str]) -> list[str]:
    """``names`` in the order to restart them: nobody misses a worker that is out of the pool, and
    it may be in when the next one goes."""
    closed = _closed(cell)
    return sorted(names, key=lambda name: name not in closed)


def replace(rollout: Rollout, name: str) -> None:
    """Restart ``name`` with the configuration that supervisord has just read again."""
    _cycle(rollout, name, partial(reload_program, rollout.cell, name))


def take_over(rollout: Rollout, name: str, orphan: Process) -> None:
    """Drain and end a worker whose supervisord died, then start its successor."""
    _cycle(rollout, name, partial(_succeed, rollout.cell, name, orphan))


def reload_program(cell: Cell, name: str) -> None:
    """Stop ``name``, and start it as supervisord's file now says."""
    supervisor = cell.supervisor
    with interrupts.deferred():
        supervisor.stop(name, stop_timeout_s(cell))
        supervisor.renew(name)


def stop_timeout_s(cell: Cell) -> float:
    """Longer than supervisord itself waits before it kills."""
    return cell.config.timeouts.drain_timeout_s + _MARGIN_S


def _cycle(rollout: Rollout, name: str, restart: Callable[[], None]) -> None:
    cell = rollout.cell
    others_draw = _await_another(cell, name)
    rollout.enter(name, Step.DRAINING)
    with drains.held(cell.layout, name, rollout.record.kind) as by_hand:
        if name in cell.workers():
            _drained(cell, name, others_draw)
        rollout.enter(name, Step.RESTARTING)
        with interrupts.deferred():
            restart()
        rollout.enter(name, Step.OPENING)
    if by_hand:
        output.say(f"  {name} stays drained, as it was: zimage undrain {name}")
    else:
        wait.until_renewed(cell, [name], _start_timeout_s(cell), f"starting {name}")
    rollout.enter(name, Step.DONE)


def _drained(cell: Cell, name: str, others_draw: bool) -> None:
    """Until ``name`` has nothing left. Where nobody else draws, it finishes its queue first, which
    may be longer than the time for that: then it hands back the rest as it ends."""
    try:
        wait_drained(cell, name)
    except CellError as error:
        if others_draw:
            raise
        output.warn(str(error).splitlines()[0])


def _await_another(cell: Cell, name: str) -> bool:
    """Whether somebody draws while ``name`` does not, for whom to wait as long as a start may take:
    one that was just added, or that died. Else ``name`` goes all the same: it may be the cure."""
    if name in _closed(cell):
        return True
    seen = cell.workers()
    stay_out = {each for each, worker in seen.items() if worker["state"] in _STAY_OUT}
    # Those that the plan has no more draw as long as the guard watches them.
    others = _distinct(each for each in (*cell.plan.names, *seen) if each not in {name, *stay_out})
    models = models_of(cell, seen)
    others = [each for each in others if models.get(each, "") == models.get(name, "")]
    found = bool(others) and _one_draws(cell, others, f"{name} goes once another draws")
    if not found:
        output.warn(f"nobody draws until {name} is back: requests get 503 and Retry-After")
    return found


def models_of(cell: Cell, seen: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Which of several models each worker has: as the guard has ``seen`` it, or else as planned."""
    planned = {worker.name: worker.model for worker in cell.plan.workers}
    return planned | {name: worker["model"] for name, worker in seen.items() if "model" in worker}


def _one_draws(cell: Cell, names: list[str], title: str) -> bool:
    try:
        wait.until_one_is_open(cell, names, _start_timeout_s(cell), title)
    except CellError as error:
        output.warn(str(error))
        return False
    return True


def _closed(cell: Cell) -> set[str]:
    """Who takes no requests, as far as the guard has said."""
    return {name for name, seen in cell.workers().items() if not seen["open"]}


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _restart(cell: Cell, name: str) -> None:
    cell.supervisor.stop(name, stop_timeout_s(cell))
    cell.supervisor.start(name)


def _succeed(cell: Cell, name: str, orphan: Process) -> None:
    left = processes.end([orphan], stop_timeout_s(cell), signal.SIGTERM)
    if left:
        raise CellError(f"process {orphan.pid} ({name}) survives SIGKILL; see its state in ps")
    cell.supervisor.start(name)


def require_known(cell: Cell, name: str) -> None:
    """``CellError`` where nobody would drain ``name``."""
    if name not in cell.plan.names:
        raise CellError(f"no worker {name}; {cell.has}")
    programs = cell.programs()
    if programs.get("guard") is None or programs["guard"].state in STOPPED:
        raise CellError("the guard is not running, and it opens and closes the pool; zimage up")


def _start_timeout_s(cell: Cell) -> float:
    timeouts = cell.config.timeouts
    return min(timeouts.up_timeout_s, timeouts.load_allowance_s + timeouts.compile_allowance_s)


def _untouched(left: str) -> str:
    return f"stopped here: {left} still run as before" if left else "stopped here"
