"""Other processes, from /proc, and a process's bond to the one that started it."""

import ctypes
import os
import signal
import time

STATE, PARENT, GROUP, SESSION, START_TIME = 0, 1, 2, 3, 19
"""Places in what ``stat`` returns; the start is in ticks since boot."""

_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 2, 36
_libc = ctypes.CDLL(None, use_errno=True)

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def stat(pid: int) -> list[str] | None:
    """The fields of proc(5)'s stat behind the command's name; None where there is no process."""
    try:
        file = os.open(f"/proc/{pid}/stat", os.O_RDONLY)  # ten times a second: no Path here
    except OSError:
        return None
    try:
        text = os.read(file, 1024).decode(errors="replace")
    except OSError:
        return None
    finally:
        os.close(file)
    # The name stands in parentheses and may hold spaces and parentheses itself.
    return text.rpartition(")")[2].split()


def is_alive(pid: int, at: float) -> bool:
    """Whether ``pid`` is the process that it was at ``at`` (monotonic seconds) and still runs.

    A zombie is dead, and so is a process whose number a younger one has taken.
    """
    started = started_at(pid)
    return started is not None and started <= at + 1.0


def started_at(pid: int) -> float | None:
    """When ``pid`` was started, in monotonic seconds to a hundredth; None where it is dead."""
    fields = stat(pid)
    if fields is None or fields[STATE] in "ZXx":
        return None
    return int(fields[START_TIME]) / _TICKS_PER_S - _suspended_s()


def end_with(parent: int, signum: int = signal.SIGKILL) -> bool:
    """Ask the kernel to send ``signum`` to this process when the thread that started it ends, over
    an exec, too; False where that has happened already. A change of user forgets it."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    return os.getppid() == parent


def ends_with() -> int:
    """The signal that was asked for so; 0: none."""
    found = ctypes.c_int(0)
    _libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(found), 0, 0, 0)
    return found.value


def adopt_orphans() -> None:
    """From now on become the parent of every descendant whose own parent ends."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _suspended_s() -> float:
    # A process's start counts from boot; the monotonic clock leaves out suspension.
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
