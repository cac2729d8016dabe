"""Locks on open files. The kernel lets go of one with its process, however that ends."""

import fcntl
from typing import IO


def try_lock(file: int | IO[str] | IO[bytes], *, shared: bool = False) -> bool:
    """Lock ``file``, beside others that share it too where it is to be ``shared``; False where
    somebody has it who does not. Never waits."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
