"""The pool's gates: one link a worker, which nginx's upstream names.

An open gate leads to the worker's socket, a closed one to a socket that is bound and never
listens: nginx is refused at once and logs that at [error]; a missing file would be [crit]. Links
are swapped by rename, so that nginx finds one or the other and never neither. Both links are made
beforehand, beside the sockets, and only get another name later: a full disk may have no room for
new ones.
"""

import os
import socket
from contextlib import suppress
from pathlib import Path


class Gate:
    def __init__(self, link: Path, worker_socket: Path, closed_socket: Path) -> None:
        self._link = link
        self._open = worker_socket
        self._closed = closed_socket
        self._spares = {
            target: target.with_name(f".{target.name}.link")
            for target in (worker_socket, closed_socket)
        }

    @property
    def is_open(self) -> bool:
        """What the file system says: a gate outlives the guard that set it."""
        return self._target() == self._open

    def prepare(self) -> None:
        """Close the gate if it leads nowhere known; leave an open or closed one as it is."""
        for target, spare in self._spares.items():
            if _target(spare) != target:
                spare.unlink(missing_ok=True)
                spare.symlink_to(target)
        if self._target() not in (self._open, self._closed):
            self.close()

    def open(self) -> None:
        self._swap(self._open)

    def close(self) -> None:
        """Where the link cannot be changed, it goes: nobody connects to a worker that is out."""
        try:
            self._swap(self._closed)
        except OSError:
            self._link.unlink(missing_ok=True)
            raise

    def _target(self) -> Path | None:
        return _target(self._link)

    def _swap(self, target: Path) -> None:
        fresh = self._link.with_name(f".{self._link.name}.new")
        fresh.unlink(missing_ok=True)
        try:
            os.link(self._spares[target], fresh, follow_symlinks=False)
        except OSError:
            fresh.symlink_to(target)
        fresh.replace(self._link)
        fresh.unlink(missing_ok=True)  # a rename to another name of the same file does nothing


def _target(link: Path) -> Path | None:
    try:
        return link.readlink()
    except OSError:
        return None


def make_closed_socket(path: Path) -> None:
    """A socket file that refuses every connection, also after this process has ended."""
    if path.is_socket():
        return
    path.unlink(missing_ok=True)
    with suppress(FileExistsError), socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
