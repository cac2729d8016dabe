"""End a cell in order and prove that nothing of it is left."""

import signal
from contextlib import suppress

from deploy import links, output
from deploy.cell import Cell, CellError
from deploy.host import orphans, processes
from deploy.host.processes import Process
from deploy.rollout import roll
from deploy.supervision.supervise import SupervisorError

_MARGIN_S = 30.0


def down(cell: Cell, *, now: bool) -> int:
    """How many processes were ended. ``now``: do not wait for drawings that run.

    ``CellError`` names those that not even SIGKILL ended.
    """
    living = processes.members(cell.layout.processes)
    if not living:
        return 0
    if not now:
        _in_order(cell)
    _kill(processes.members(cell.layout.processes))
    left = processes.members(cell.layout.processes)
    if left:
        pids = ", ".join(f"{p.pid} ({p.command[:40]})" for p in left)
        raise CellError(f"still there after SIGKILL: {pids}; see their state in ps")
    layout = cell.layout
    for path in (layout.processes, layout.run_record, layout.supervisor_socket):
        path.unlink(missing_ok=True)
    if layout.short_link is not None:
        with suppress(OSError):  # of root's, which its user may not delete
            layout.short_link.unlink()
    return len(living)


def end_timeout_s(cell: Cell) -> float:
    """The longest that an orderly end takes: nginx, then all workers at once, then the rest."""
    return 2 * roll.stop_timeout_s(cell) + _MARGIN_S


def _in_order(cell: Cell) -> None:
    try:
        _stop_programs(cell)
        cell.supervisor.shutdown()
        _wait_for_supervisord(cell, _MARGIN_S)
    except SupervisorError:
        output.step("supervisord does not answer: end what it left")
        _wait_for_supervisord(cell, 0.0)
    orphans.end(orphans.find(cell.layout), cell.config.timeouts.drain_timeout_s)


def _stop_programs(cell: Cell) -> None:
    """nginx finishes what is open, then all workers what they have; the guard goes last, but for
    links to hosts, which it would start again.

    Not by supervisord's own shutdown: it stops one worker after another, and eight that draw would
    take eight times as long.
    """
    supervisor = cell.supervisor
    supervisor.stop_all(["nginx"], roll.stop_timeout_s(cell))
    others = supervisor.states().keys() - {"nginx", "guard"}
    to_hosts = sorted(filter(links.is_program, others))
    supervisor.stop_all(sorted(others.difference(to_hosts)), roll.stop_timeout_s(cell))
    if to_hosts:
        supervisor.stop_all(["guard"], roll.stop_timeout_s(cell))
        supervisor.stop_all(to_hosts, roll.stop_timeout_s(cell))


def _wait_for_supervisord(cell: Cell, timeout_s: float) -> None:
    leader = processes.leader(cell.layout.processes)
    if leader is not None and processes.wait_gone([leader], timeout_s):
        output.warn("supervisord does not end in time: it is killed")
        leader.send(signal.SIGKILL)
        processes.wait_gone([leader], 5.0)


def _kill(living: list[Process]) -> None:
    # supervisord first: it would start again what is killed.
    for process in sorted(living, key=lambda p: p.pid != p.session):
        process.send(signal.SIGKILL)
    processes.wait_gone(living, 5.0)
