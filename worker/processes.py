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
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    fields = stat.rpartition(")")[2].split()
    started = int(fields[_START_TIME]) / _TICKS_PER_S - _suspended_s()
    return fields[0] not in ("Z", "X", "x") and started <= at + 1.0


def _suspended_s() -> float:
    # A process's start counts from boot; the monotonic clock leaves out suspension.
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
