"""``python -m loadtest.faults.freeze PID main|others``: threads of a process stand still.

They do until standard input ends. The kernel's tracing (ptrace) stops single threads where a
signal stops them all; what a thread holds, such as Python's global lock, it keeps. When this
process ends, whichever way, the kernel lets the threads go.
"""

import ctypes
import os
import select
import sys
from pathlib import Path

_SEIZE, _INTERRUPT, _ALL_KINDS = 0x4206, 0x4207, 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def threads(pid: int, which: str) -> list[int]:
    """The thread ids of ``pid``: the first one, which is the process's own, or the others."""
    found = sorted(int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir())
    return [pid] if which == "main" else [tid for tid in found if tid != pid]


def freeze(tid: int) -> None:
    for request in (_SEIZE, _INTERRUPT):
        if _libc.ptrace(request, tid, None, None) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def reap(tids: list[int]) -> list[int]:
    """Those that still live. A traced thread that was killed stays until its tracer looks."""
    left = []
    for tid in tids:
        try:
            done, status = os.waitpid(tid, os.WNOHANG | _ALL_KINDS)
        except ChildProcessError:
            continue
        if not done or not (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
            left.append(tid)
    return left


def main() -> int:
    pid, which = int(sys.argv[1]), sys.argv[2]
    try:
        left = threads(pid, which)
        for tid in left:
            freeze(tid)
    except OSError as error:
        print(error, flush=True)
        return 1
    print("frozen", flush=True)
    while not select.select([sys.stdin], [], [], 0.005)[0]:
        left = reap(left)
    return 0


if __name__ == "__main__":
    sys.exit(main())
