"""How far the items under way are: one small file a worker, read by all of them.

Steps are told while they are new and forgotten after: they are not worth a transaction.
"""

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Never

from worker import whole_file
from worker.outbox import LoopOutbox

_WRITE_S = 0.1
_READ_S = 0.2

Steps = dict[str, tuple[int, int]]
"""Steps done and steps in all, by lease."""


class ProgressWriter(LoopOutbox[Never]):
    """The file of one worker; it may lie behind by a moment. Nothing is lost: what is newer takes
    the place of what waits."""

    def __init__(self, path: Path) -> None:
        super().__init__(lambda _: None, ("progress of jobs waits for the disk", ""))
        self._pause_s = lambda _: _WRITE_S
        self._path = path
        self._steps: Steps = {}
        self._writing: asyncio.Task[None] | None = None

    def set(self, lease: str, done: int, of: int) -> None:
        """On the event loop: the item of ``lease`` has done so many steps."""
        self._steps[lease] = done, of
        self._change()

    def drop(self, lease: str) -> None:
        """The item of ``lease`` is drawn, or not any more."""
        if self._steps.pop(lease, None):
            self._change()

    def _change(self) -> None:
        self._changed.set()
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write_changes())

    async def _write(self) -> None:
        await asyncio.to_thread(whole_file.replace, self._path, json.dumps(self._steps))


class ProgressReader:
    """What all workers last said, for any number of readers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: Steps = {}
        self._known_at = 0.0

    async def read(self) -> Steps:
        """Steps of all items under way; a moment old."""
        if time.monotonic() - self._known_at > _READ_S:
            self._known_at = time.monotonic()
            self._known = await asyncio.to_thread(_read, self._folder)
        return self._known


def _read(folder: Path) -> Steps:
    found: Steps = {}
    for path in folder.glob("*.steps"):
        with contextlib.suppress(OSError, ValueError):
            found |= {
                lease: (done, of) for lease, (done, of) in json.loads(path.read_text()).items()
            }
    return found
