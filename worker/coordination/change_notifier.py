"""Tells all workers of a cell that a job has changed, without asking the database all the time."""

import asyncio
import contextlib
import os
import time
from pathlib import Path

_LOOK_S = 0.1


class ChangeNotifier:
    """A file whose time stamp changes. Hearing it is a hint: who listens also looks by itself now
    and then. Each listener has a notifier of its own over the same ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._heard_at = self._changed_at()

    def notify(self) -> None:
        """Wake everybody who waits, in all processes."""
        with contextlib.suppress(OSError):
            self._path.touch(0o600)
            # Not the kernel's time: that stands still for some milliseconds.
            os.utime(self._path, ns=(time.time_ns(),) * 2)

    def changed(self) -> bool:
        """Whether it was notified since this was asked last."""
        before, self._heard_at = self._heard_at, self._changed_at()
        return before != self._heard_at

    async def wait(self, timeout_s: float) -> None:
        """Return when it is notified, at the latest after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while not self.changed() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)  # no event of asyncio's comes from another process

    def _changed_at(self) -> int:
        try:
            return os.stat(self._path).st_mtime_ns  # noqa: PTH116 — asked all the time
        except OSError:
            return 0
