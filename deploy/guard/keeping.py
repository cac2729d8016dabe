"""What cleaners of old files must not take from a cell that runs: sockets, locks, heartbeats.

systemd-tmpfiles and its like delete what nobody has touched for ten days in /tmp, and a
configured run directory, or the short name of the state directory, may lie there.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from deploy.layout import Layout

_log = logging.getLogger("guard")


_TOUCH_S = 3600.0


class Keeping:
    """``again`` and ``touch`` are called every few seconds."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._locked: list[int] = []
        self._touched_at = -_TOUCH_S

    def lock(self) -> None:
        """Hold the folders for as long as this process lives: systemd-tmpfiles passes over those
        that are locked, with all that is in them."""
        for directory in (self._layout.var_dir, self._layout.run_dir):
            with suppress(OSError):
                folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
                self._locked.append(folder)
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def again(self) -> None:
        """Make the short name again where it was deleted: all that nginx and workers connect to
        has it in its path."""
        if self._layout.make_short_link():
            _log.warning("%s was deleted and is made again", self._layout.short_link)

    def touch(self) -> None:
        """Make everything young, once an hour: other cleaners know no locks."""
        if time.monotonic() - self._touched_at < _TOUCH_S:
            return
        self._touched_at = time.monotonic()
        run_dir = self._layout.run_dir
        link = self._layout.short_link
        for path in (*([link] if link else []), run_dir, *_below((run_dir, self._layout.pool_dir))):
            with suppress(OSError):
                os.utime(path, follow_symlinks=False)


def _below(folders: Iterable[Path]) -> Iterable[Path]:
    return (path for folder in folders for path in folder.rglob("*"))
