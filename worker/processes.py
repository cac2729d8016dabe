"""Whether another process is alive, from /proc."""

import os
import time
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_START_TIME = 19  # field 22 of proc(5)'s stat, counted after the parenthesised name


def is_alive(pid: int, at: float) -> bool:
    """Whether ``pid`` is the process that it was at ``at`` (monotonic seconds) and still runs.

    A zombie is dead, and so is a process whose number a younger one has taken.
    """
    started = started_at(pid)
    return started is not None and started <= at + 1.0


def started_at(pid: int) -> float | None:
    """When ``pid`` was started, in monotonic seconds to a hundredth; None where it is dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    if fields[0] in ("Z", "X", "x"):
        return None
    return int(fields[_START_TIME]) / _TICKS_PER_S - _suspended_s()


def _suspended_s() -> float:
    # A process's start counts from boot; the monotonic clock leaves out suspension.
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
