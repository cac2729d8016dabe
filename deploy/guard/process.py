"""Which process a heartbeat belongs to, and how to end it without hitting another one.

A pid alone proves nothing: it is used again after its process has ended. A worker is known by its
environment (supervisor sets ``ZIMAGE_NAME`` and ``ZIMAGE_RUN_DIR``) and its start time.
"""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from worker.coordination.processes import START_TIME, STATE, stat

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Process:
    pid: int
    started: int
    """Clock ticks after the machine's boot: with the pid, unique."""

    @property
    def state(self) -> str:
        """The kernel's letter (R, S, D, T …); "" once it has ended, reaped or not."""
        fields = stat(self.pid)
        if fields is None or int(fields[START_TIME]) != self.started or fields[STATE] in "ZX":
            return ""
        return fields[STATE]

    @property
    def alive(self) -> bool:
        return self.state != ""

    def resident_bytes(self) -> int:
        """What it holds of the machine's memory, shared pages included; 0 once it has ended."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_bytes().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * _PAGE_BYTES

    def terminate(self) -> None:
        """SIGTERM it, if it is still there."""
        with suppress(ProcessLookupError):
            if self.alive:
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> bool:
        """SIGKILL it, with its children where it leads their group; False if it has ended.

        A child that outlives it would keep the socket, and the requests inside would hang.
        """
        if not self.alive:
            return False
        try:
            if os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True


def find_worker(pid: int, name: str, run_dir: Path) -> Process | None:
    """The live process ``pid`` if it is the worker ``name`` of this cell."""
    fields = stat(pid)
    expected = {f"ZIMAGE_NAME={name}", f"ZIMAGE_RUN_DIR={run_dir}"}
    if fields is None or not expected <= _environment(pid):
        return None
    process = Process(pid, int(fields[START_TIME]))
    return process if process.alive else None


def _environment(pid: int) -> set[str]:
    try:
        data = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return set()
    return set(data.decode(errors="replace").split("\0"))
