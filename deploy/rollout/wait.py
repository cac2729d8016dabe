"""Waiting for workers: a deadline, visible progress, and a last word on what was seen."""

import time
from collections.abc import Callable, Collection
from typing import Any

from deploy import output
from deploy.cell import Cell, CellError
from deploy.config import ROOT
from deploy.host import processes
from deploy.supervision.supervise import ProgramState
from worker.exits import NAMES

_TICK_S = 0.2
_GIVE_UP_AFTER_EXITS = 3
"""Failed starts of one worker after which waiting longer is pointless."""

Worker = dict[str, Any]


def until_open(cell: Cell, names: Collection[str], timeout_s: float, title: str) -> None:
    """Until all ``names`` take requests; ``CellError`` with state and log of one that does not."""
    _until(cell, names, timeout_s, title, _is_open, len(names))


def until_renewed(cell: Cell, names: Collection[str], timeout_s: float, title: str) -> None:
    """``until_open``, with the code that lies there: they say themselves which one they run."""
    until_open(cell, names, timeout_s, title)
    seen, wanted = cell.workers(), cell.host.worker_code
    # The guard of an older version does not pass it on.
    others = [n for n in names if seen.get(n, {}).get("code", wanted) != wanted]
    if others:
        raise CellError(
            f"{', '.join(others)} run other code than lies in {ROOT}: it was changed meanwhile, or "
            "is being changed; zimage up, once it is whole"
        )


def until_one_is_open(cell: Cell, names: Collection[str], timeout_s: float, title: str) -> None:
    """Until one of ``names`` takes requests; ``CellError`` as above where none does."""
    _until(cell, names, timeout_s, title, _is_open, 1)


def _is_open(worker: Worker) -> bool:
    return bool(worker.get("open"))


def until_drained(cell: Cell, name: str, timeout_s: float) -> None:
    """Until ``name`` is out of the pool and has nothing left to draw."""
    _until(
        cell,
        [name],
        timeout_s,
        f"draining {name}",
        # Down is drained as well: nothing is queued or running there.
        lambda worker: not _is_open(worker) and worker["state"] in {"drained", "dead", "fatal"},
        enough=1,
        give_up=False,
    )


def _until(
    cell: Cell,
    names: Collection[str],
    timeout_s: float,
    title: str,
    is_done: Callable[[Worker], bool],
    enough: int,
    *,
    give_up: bool = True,
) -> None:
    started = time.time()
    deadline = time.monotonic() + timeout_s
    failures = _FailedStarts(cell)
    with output.live(cell) as progress:
        while True:
            seen = _look(cell, names)
            waiting = [n for n in names if not is_done(seen[n])]
            done = len(names) - len(waiting) >= enough
            progress.show(title, seen, idle=done)
            if done and _fresh(cell, started):
                return
            waiting = waiting or list(names)
            hopeless = failures.hopeless(waiting) if give_up else []
            lost = len(names) - len(hopeless) < enough
            if lost or time.monotonic() > deadline:
                break
            _require_supervisord(cell, title)
            time.sleep(_TICK_S)
    raise CellError(_last_word(cell, [*hopeless, *waiting][0], seen, title, timeout_s, lost))


def _require_supervisord(cell: Cell, title: str) -> None:
    """Without it nobody starts what ends, and nobody the guard, who would tell."""
    if processes.leader(cell.layout.processes) is None:
        raise CellError(
            f"{title}: supervisord is gone; what it has started goes on, and is taken over by: "
            "zimage up"
        )


def _fresh(cell: Cell, since: float) -> bool:
    """Whether the guard has written after ``since``: what stood there before proves nothing."""
    state = cell.state()
    return state is not None and state["at"] >= since


def _look(cell: Cell, names: Collection[str]) -> dict[str, Worker]:
    """The guard's view, and supervisor's of what the guard does not know yet."""
    workers, programs = cell.workers(), None
    for name in names:
        if name not in workers:
            programs = cell.programs() if programs is None else programs
            state = programs[name].state.lower() if name in programs else "absent"
            workers[name] = {"name": name, "state": state, "phase": None, "open": False}
    return {name: workers[name] for name in names}


class _FailedStarts:
    """Counts how often each worker has ended since waiting began."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._pids: dict[str, set[int]] = {}

    def hopeless(self, names: Collection[str]) -> list[str]:
        """Workers that start again and again, or that supervisor gave up on."""
        programs = self._cell.programs()
        return [name for name in names if name in programs and self._failed(name, programs[name])]

    def _failed(self, name: str, program: ProgramState) -> bool:
        pids = self._pids.setdefault(name, set())
        if program.pid:
            pids.add(program.pid)
        return program.state == "FATAL" or len(pids) > _GIVE_UP_AFTER_EXITS


def _last_word(
    cell: Cell, name: str, seen: dict[str, Worker], title: str, timeout_s: float, lost: bool
) -> str:
    worker = seen[name]
    program = cell.programs().get(name)
    reason = "it ends again and again" if lost else f"not done after {timeout_s:g} s"
    exit_status = program.exit_status if program is not None else 0
    last_exit = NAMES.get(exit_status) if exit_status else worker.get("last_exit")
    lines = [f"{title}: {name} failed: {reason}; last seen {worker['state']}"]
    lines[0] += f", last exit: {last_exit}" if last_exit else ""
    lines.append(f"the end of {cell.layout.log(name)}:")
    lines += [f"  | {line}" for line in cell.log_tail(name).splitlines()]
    return "\n".join(lines)
