"""How far items are, over all hosts that share a database.

Workers of this host tell each other by files, ten times a second. To those of others each tells
once a second, by one row and only what has changed; they are read while somebody looks.
"""

import asyncio
import contextlib
import time
from pathlib import Path

from worker.coordination.progress import ProgressReader, ProgressWriter, Steps
from worker.errors import StoreAway
from worker.storage import job_steps
from worker.storage.database import Database, clock

_TELL_S = 1.0
_READ_S = 1.0
_RENEW_S = job_steps.FRESH_S / 3
_FORGET_S = 600.0


class SharedProgressWriter(ProgressWriter):
    """``run`` it as a task."""

    def __init__(self, path: Path, database: Database, holder: str) -> None:
        super().__init__(path)
        self._database = database
        self._holder = holder
        self._told: Steps = {}
        self._told_at = self._forgot_at = 0.0

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(_TELL_S)
            with contextlib.suppress(StoreAway):
                await self.tell()

    async def tell(self) -> None:
        """Tell other hosts what they do not know yet."""
        steps, now = dict(self._steps), time.monotonic()
        if steps != self._told or (steps and now - self._told_at > _RENEW_S):
            await self._database.run(lambda c: job_steps.tell(c, self._holder, steps, clock(c)))
            self._told, self._told_at = steps, now
        if steps and now - self._forgot_at > _FORGET_S:
            await self._database.run(lambda c: job_steps.forget(c, clock(c)))
            self._forgot_at = now


class SharedProgressReader(ProgressReader):
    """What all workers of all hosts last said."""

    def __init__(self, folder: Path, database: Database, holder: str) -> None:
        super().__init__(folder)
        self._database = database
        self._holder = holder
        self._elsewhere: Steps = {}
        self._elsewhere_at = -_READ_S

    async def read(self) -> Steps:
        """Steps of all items under way; those of other hosts a second or two old."""
        if time.monotonic() - self._elsewhere_at > _READ_S:
            self._elsewhere_at = time.monotonic()
            self._elsewhere = await self._ask()
        # Those of this host are newer.
        return self._elsewhere | await super().read()

    async def _ask(self) -> Steps:
        with contextlib.suppress(StoreAway):
            return await self._database.read(
                lambda c: job_steps.of_others(c, self._holder, clock(c))
            )
        return {}
