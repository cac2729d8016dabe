"""Faults of one worker process. Each is a context: injected on entry, undone on exit."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Set
from functools import partial
from pathlib import Path

from deploy.config import ROOT
from deploy.supervision.supervise import Supervisor
from loadtest.faults.cell import Cell
from loadtest.waiting import beside, until
from worker.coordination.heartbeat import DRAWING, Phase
from worker.file_lock import try_lock

Undo = Callable[[], None]
_WAIT_S = 30.0
_TRIES = 20
_await = partial(until, timeout_s=_WAIT_S, pause_s=0.001)


def kill(cell: Cell, worker: str) -> int:
    """SIGKILL; the pid that died."""
    pid = cell.pid(worker)
    _send(pid, signal.SIGKILL)
    return pid


def stop(cell: Cell, worker: str) -> Undo:
    """SIGSTOP: the process is there and does nothing. Undo continues it if it still lives."""
    pid = cell.pid(worker)
    os.kill(pid, signal.SIGSTOP)
    return lambda: _send(pid, signal.SIGCONT)


@contextlib.contextmanager
def killed(cell: Cell, worker: str) -> Iterator[None]:
    kill(cell, worker)
    yield


@contextlib.contextmanager
def stopped(cell: Cell, worker: str) -> Iterator[None]:
    undo = stop(cell, worker)
    try:
        yield
    finally:
        undo()


@contextlib.contextmanager
def slow(cell: Cell, worker: str, share: float = 0.1, period_s: float = 0.2) -> Iterator[None]:
    """The process gets ``share`` of its time: ten times slower, and never silent for long."""
    pid, over = cell.pid(worker), threading.Event()

    def throttle() -> None:
        while not over.is_set():
            _send(pid, signal.SIGSTOP)
            over.wait(period_s * (1 - share))
            _send(pid, signal.SIGCONT)
            over.wait(period_s * share)

    try:
        with beside(throttle, over):
            yield
    finally:
        _send(pid, signal.SIGCONT)


@contextlib.contextmanager
def step_hangs(cell: Cell, worker: str) -> Iterator[None]:
    """Every thread but the event loop's stands still in the middle of a step."""
    with _frozen_in(cell, worker, DRAWING):
        yield


@contextlib.contextmanager
def idle_hangs(cell: Cell, worker: str) -> Iterator[None]:
    """Every thread but the event loop's stands still while there is nothing to draw."""
    with _frozen_in(cell, worker, {Phase.IDLE}):
        yield


@contextlib.contextmanager
def loop_blocked(cell: Cell, worker: str) -> Iterator[None]:
    """The event loop's thread stands still; the others go on while they can."""
    with _frozen(cell.pid(worker), "main"):
        yield


@contextlib.contextmanager
def dies_in_warm_up(cell: Cell, worker: str, times: int = 2) -> Iterator[None]:
    """Killed, and its successors too, as soon as they load."""
    for _ in range(times):
        pid = kill(cell, worker)
        _await(partial(_succeeded, cell, worker, pid), what=f"a successor of {worker}")
    kill(cell, worker)
    yield


@contextlib.contextmanager
def crash_loop(cell: Cell, worker: str) -> Iterator[None]:
    """Every new process of ``worker`` fails to start while this holds its lock."""
    with cell.layout.lock(worker).open("a") as lock:
        while not try_lock(lock):
            # A successor may have been quicker than we were: then it goes too.
            kill(cell, worker)
            time.sleep(0.005)
        yield


@contextlib.contextmanager
def out_of_memory(cell: Cell, worker: str, spare_mib: int = 4) -> Iterator[None]:
    """The process may map hardly more memory than it has now."""
    pid = cell.pid(worker)
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + (spare_mib << 20)
    with limited(pid, resource.RLIMIT_AS, limit):
        yield


@contextlib.contextmanager
def descriptors_exhausted(cell: Cell, worker: str) -> Iterator[None]:
    """The process may open no file or connection more than it has now."""
    pid = cell.pid(worker)
    with limited(pid, resource.RLIMIT_NOFILE, len(list(Path(f"/proc/{pid}/fd").iterdir()))):
        yield


@contextlib.contextmanager
def socket_deleted(cell: Cell, worker: str) -> Iterator[None]:
    """Nobody can connect any more, and the process does not know."""
    cell.layout.socket(worker).unlink(missing_ok=True)
    yield


@contextlib.contextmanager
def killed_while_restarting(cell: Cell, worker: str) -> Iterator[None]:
    """An operator restarts it, and the new process is killed while it starts."""
    supervisor, pid = Supervisor(cell.layout), cell.pid(worker)
    supervisor.stop(worker, _WAIT_S)
    supervisor.start(worker)
    _await(partial(_succeeded, cell, worker, pid), what=f"the new process of {worker}")
    kill(cell, worker)
    yield


@contextlib.contextmanager
def _frozen_in(cell: Cell, worker: str, phases: Set[Phase]) -> Iterator[None]:
    """Threads take a moment to stop, and a step may be over by then: that is tried again."""
    for _ in range(_TRIES):
        phase = f"{worker} in {_names(phases)}"
        _await(lambda: cell.heartbeat(worker).phase in phases, what=phase)
        with _frozen(cell.pid(worker), "others"):
            if cell.heartbeat(worker).phase in phases:
                yield
                return
    raise TimeoutError(f"{worker} was never caught in {_names(phases)}")


def _names(phases: Set[Phase]) -> str:
    return " or ".join(sorted(phase.name.lower() for phase in phases))


@contextlib.contextmanager
def _frozen(pid: int, which: str) -> Iterator[None]:
    command = [sys.executable, "-m", "loadtest.faults.freeze", str(pid), which]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        if holder.stdout.readline() != "frozen\n":
            raise PermissionError(f"cannot stop threads of process {pid}: run this as root")
        try:
            yield
        finally:
            holder.communicate("", timeout=_WAIT_S)  # end of input lets them go


@contextlib.contextmanager
def limited(pid: int, what: int, soft: int) -> Iterator[None]:
    """The process has no more than ``soft`` of resource ``what`` (a constant of ``resource``)."""
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (soft, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, what, before)


def _succeeded(cell: Cell, worker: str, before: int) -> bool:
    """A new process has begun: a moment later it loads."""
    with contextlib.suppress(LookupError):
        return cell.pid(worker) != before
    return False


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
