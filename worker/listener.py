"""The listening socket of a worker and the lock that says whose it is."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from worker.file_lock import try_lock

BACKLOG = 1024
_POLL_S = 0.05


class SocketTaken(Exception):
    """The socket cannot be had; the message says why and what to do."""


def listen(path: Path, lock: Path, wait_s: float) -> socket.socket:
    """A listening socket at ``path``, open to this user alone.

    ``lock`` is held until this process ends, so that an orphan and its successor never serve side
    by side. A file left behind by a dead predecessor is replaced; a living one is waited for.
    """
    # The lock is opened first: the kernel closes descriptors in order, so it is free by the time
    # that clients see a dead worker's socket close.
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _acquire(lock, time.monotonic() + wait_s)
        with _owner_only():
            return _bind(path)
    except OSError as error:
        raise SocketTaken(f"{path}: {error.strerror}: check run_dir") from error


def _acquire(lock: Path, deadline: float) -> None:
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while not try_lock(fd):
        if time.monotonic() > deadline:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise SocketTaken(
                f"{lock} is held by another worker of this name (pid {holder}): stop it first, or "
                "choose another name or run_dir"
            )
        time.sleep(_POLL_S)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)


def _bind(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    listening.setblocking(False)
    return listening


@contextlib.contextmanager
def _owner_only() -> Iterator[None]:
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)
