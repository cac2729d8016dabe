"""One worker after another: out of the pool, restarted, in again. Drawing goes on all the while.

The guard does the pool's part: a flag file drains a worker, and its removal lets it in again.
"""

import signal
from collections.abc import Callable, Collection
from functools import partial

from deploy import output
from deploy.cell import Cell, CellError
from deploy.host import processes
from deploy.host.processes import Process
from deploy.rollout import drains, interrupts, wait
from deploy.supervision.supervise import STOPPED

_MARGIN_S = 20.0
_STAY_OUT = ("drained", "fatal")
"""Who does not come back by itself."""


def begin_drain(cell: Cell, name: str) -> None:
    """Take ``name`` out of the pool until ``begin_undrain``."""
    require_known(cell, name)
    drains.put(cell.layout, name)


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


def restart(cell: Cell, names: Collection[str]) -> None:
    """Restart ``names`` one by one; stops at the first that does not come back."""
    for name in names:
        require_known(cell, name)
    names = closed_first(cell, names)
    for done, name in enumerate(names):
        output.step(f"{name}: drain, restart, warm up, open ({done + 1} of {len(names)})")
        try:
            _cycle(cell, name, partial(_restart, cell, name))
        except CellError as error:
            left = ", ".join(names[done + 1 :])
            raise CellError(f"{error}\n{_untouched(left)}") from None


def restart_at_once(cell: Cell, names: Collection[str]) -> None:
    """Restart ``names`` together: quicker, and nothing is drawn until the first is back."""
    with interrupts.deferred():
        for name in names:
            cell.supervisor.stop(name, stop_timeout_s(cell))
        for name in names:
            cell.supervisor.start(name)
    by_hand = drains.by_hand(cell.layout)
    waited_for = [name for name in names if name not in by_hand]
    wait.until_open(cell, waited_for, _start_timeout_s(cell), "starting")


def closed_first(cell: Cell, names: Collection[str]) -> list[str]:
    """``names`` in the order to restart them: nobody misses a worker that is out of the pool, and
    it may be in when the next one goes."""
    closed = _closed(cell)
    return sorted(names, key=lambda name: name not in closed)


def replace(cell: Cell, name: str) -> None:
    """Restart ``name`` with the configuration that supervisord has just read again."""
    _cycle(cell, name, partial(reload_program, cell, name))


def take_over(cell: Cell, name: str, orphan: Process) -> None:
    """Drain and end a worker whose supervisord died, then start its successor."""
    _cycle(cell, name, partial(_succeed, cell, name, orphan))


def reload_program(cell: Cell, name: str) -> None:
    """Stop ``name``, and start it as supervisord's file now says."""
    supervisor = cell.supervisor
    with interrupts.deferred():
        supervisor.stop(name, stop_timeout_s(cell))
        supervisor.remove(name)
        supervisor.add(name)
        supervisor.start(name)


def stop_timeout_s(cell: Cell) -> float:
    """Longer than supervisord itself waits before it kills."""
    return cell.config.timeouts.drain_timeout_s + _MARGIN_S


def _cycle(cell: Cell, name: str, restart: Callable[[], None]) -> None:
    others_draw = _await_another(cell, name)
    with drains.held(cell.layout, name, "restart") as by_hand:
        if name in cell.workers():
            _drained(cell, name, others_draw)
        with interrupts.deferred():
            restart()
    if by_hand:
        output.say(f"  {name} stays drained, as it was: zimage undrain {name}")
    else:
        wait.until_open(cell, [name], _start_timeout_s(cell), f"starting {name}")


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
    stay_out = {each for each, seen in cell.workers().items() if seen["state"] in _STAY_OUT}
    others = [each for each in cell.plan.names if each not in {name, *stay_out}]
    found = bool(others) and _one_draws(cell, others, f"{name} goes once another draws")
    if not found:
        output.warn(f"nobody draws until {name} is back: requests get 503 and Retry-After")
    return found


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
        raise CellError(f"no worker {name}; this cell has {', '.join(cell.plan.names)}")
    programs = cell.programs()
    if programs.get("guard") is None or programs["guard"].state in STOPPED:
        raise CellError("the guard is not running, and it opens and closes the pool; zimage up")


def _start_timeout_s(cell: Cell) -> float:
    timeouts = cell.config.timeouts
    return min(timeouts.up_timeout_s, timeouts.load_allowance_s + timeouts.compile_allowance_s)


def _untouched(left: str) -> str:
    return f"stopped here: {left} still run as before" if left else "stopped here"
