"""What a cluster signs with: links, places in a queue and sign-ins are good on every host, and
while one secret takes the place of another, with either.

The files of the secrets are renewed while workers run, so each look may find others.
"""

import time
from pathlib import Path

from worker import log
from worker.storage.secret import cluster_secrets, other_secrets

_LOOK_S = 1.0


class ClusterSecrets:
    """``Signing`` of the file at ``path``. ``OSError`` where there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._stamp()
        self._known = cluster_secrets(path)
        self._look_at = time.monotonic() + _LOOK_S

    def __call__(self) -> tuple[bytes, ...]:
        """The first signs, and all of them verify."""
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_S
            self._look()
        return self._known

    def _look(self) -> None:
        try:
            if (seen := self._stamp()) != self._seen:
                self._known, self._seen = cluster_secrets(self._path), seen
                log.event("secrets of the cluster read", secrets=len(self._known))
        except (OSError, ValueError) as error:
            log.failure("secrets of the cluster cannot be read; those in memory go on", error)

    def _stamp(self) -> tuple[tuple[int, int] | None, ...]:
        return tuple(_stamp_of(path) for path in (self._path, other_secrets(self._path)))


def _stamp_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
