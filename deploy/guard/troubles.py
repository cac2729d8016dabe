"""What one gate, chore or loop raises ends neither the others nor the guard: it is told."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from deploy.guard.journal import Journal

_AGAIN_S = 1.0
_TELL_EVERY_S = 60.0

_log = logging.getLogger("guard")


class Troubles:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._told_at: dict[tuple[str, str | None], float] = {}

    @contextmanager
    def survived(self, what: str, worker: str | None = None) -> Iterator[None]:
        """Go on behind the block whatever it raises. Told once a minute: it may happen ten times a
        second."""
        try:
            yield
        except Exception as error:
            now = time.monotonic()
            if now - self._told_at.get((what, worker), -_TELL_EVERY_S) >= _TELL_EVERY_S:
                self._told_at[what, worker] = now
                self._journal.event(f"{what} failed: {error!r}", worker, logging.ERROR)
                _log.error("%s failed", what, exc_info=error)

    async def again_and_again(
        self, what: str, loop: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """``loop`` never ends by itself: where it does, it begins anew."""
        while True:
            with self.survived(what):
                await loop()
            await asyncio.sleep(_AGAIN_S)
