"""Names a process as the holder of leases, so that another can tell when it is dead."""

import functools
import os
import time
from pathlib import Path

from worker.coordination.processes import is_alive


def this_process(worker: str) -> str:
    """Boot of the machine, process, a moment at which it ran, and the worker's name."""
    return f"{_boot()}/{os.getpid()}/{time.monotonic():.3f}/{worker}"


def is_dead(holder: str) -> bool:
    """Whether ``holder`` has certainly ended. Of another machine, or of this one before it was
    started again, nothing is certain: their leases end by time."""
    boot, pid, at, _ = holder.split("/")
    return boot == _boot() and not is_alive(int(pid), float(at))


@functools.cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
