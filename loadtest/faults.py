"""Faults to inject into a running cell on this machine.

Independent of any load generator: tests and scenarios share it. Every fault works from outside,
on real processes, and takes its targets from the cell's own state; nothing in the product knows
of it. Undo what can be undone with the returned function.
"""

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.layout import Layout
from worker.beat import read_beat

Undo = Callable[[], None]


@dataclass(frozen=True)
class Cell:
    """A running cell, seen through its files."""

    layout: Layout

    def state(self) -> dict[str, Any]:
        """What the guard last wrote."""
        state: dict[str, Any] = json.loads(self.layout.cell_json.read_text())
        return state

    def workers(self) -> list[str]:
        return [worker["name"] for worker in self.state()["workers"]]

    def pid(self, worker: str) -> int:
        """Process id in the worker's heartbeat; LookupError where it has none."""
        beat = read_beat(self.layout.beat(worker))
        if beat is None:
            raise LookupError(f"{worker} has no heartbeat")
        return beat.pid

    def open(self) -> set[str]:
        """Workers that nginx would reach now."""
        return {
            gate.stem
            for gate in self.layout.pool_dir.glob("*.sock")
            if gate.readlink().name != self.layout.closed_socket.name
        }


def kill(cell: Cell, worker: str) -> int:
    """SIGKILL; the pid that died."""
    pid = cell.pid(worker)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return pid


def stop(cell: Cell, worker: str) -> Undo:
    """SIGSTOP: the process is there and does nothing. Undo continues it if it still lives."""
    pid = cell.pid(worker)
    os.kill(pid, signal.SIGSTOP)

    def undo() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    return undo


@contextlib.contextmanager
def crash_loop(cell: Cell, worker: str) -> Iterator[None]:
    """Every new process of ``worker`` fails to start while this holds its lock."""
    with cell.layout.lock(worker).open("a") as lock:
        while not _locked(lock.fileno()):
            # A successor may have been quicker than we were: then it goes too.
            kill(cell, worker)
            time.sleep(0.005)
        yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def process_ids(under: Path) -> set[int]:
    """Processes of this machine whose command line or working files name ``under``."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if str(under).encode() in (entry / "cmdline").read_bytes():
                    found.add(int(entry.name))
    return found
