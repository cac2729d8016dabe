"""What is written behind an answer: bounded, in order, together with what comes meanwhile. Whoever
puts something there never waits, and what finds no room is counted.

``Outbox`` has a thread of its own: log lines, the audit log. ``LoopOutbox`` is for what goes to a
database or disk that may be away: pictures of the gallery, the ledger, the progress of jobs.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from worker.errors import StoreAway

T = TypeVar("T")

_log = logging.getLogger("worker")  # not worker.log, which has an outbox itself


class Outbox(Generic[T]):
    """``write`` gets what waits, and is called again after a pause: a thread that woke for each
    item would take the interpreter each time.

    What it raises ends ``run``; whatever it has not taken is still there for the next ``run``.
    """

    def __init__(
        self, write: Callable[[Iterator[T]], object], max_items: int, pause_s: float
    ) -> None:
        self._write = write
        self._max_items = max_items
        self._pause_s = pause_s
        self._items: SimpleQueue[T | None] = SimpleQueue()
        self._last = False  # it is behind the last item, None
        self._closing, self._ended = threading.Event(), threading.Event()
        self._refused = 0
        self.unwritten = 0
        """Items that ``write`` took and did not write, as it says itself."""

    @property
    def lost(self) -> int:
        """Items that found the queue full, or were not written."""
        return self._refused + self.unwritten

    def put(self, item: T) -> bool:
        """Queue ``item``, unless too many wait; whether it is queued."""
        if self._items.qsize() >= self._max_items:
            self._refused += 1
            return False
        self._items.put(item)
        return True

    def run(self) -> None:
        """Write until all is written after ``close``. Blocks: a thread's work."""
        while not self._last:
            self._write(self._waiting())
            self._closing.wait(self._pause_s)
        self._ended.set()

    def close(self, timeout_s: float) -> bool:
        """Have what waits written, for at most ``timeout_s``; whether all of it is."""
        self._closing.set()
        self._items.put(None)
        return self._ended.wait(timeout_s)

    def _waiting(self) -> Iterator[T]:
        wait = True
        with suppress(Empty):
            while (item := self._items.get(wait)) is not None:
                yield item
                wait = False
            self._last = True


class LoopOutbox(Generic[T]):
    """Subclasses' ``_write`` takes off ``_waiting`` what it has written, and is called again for
    what it leaves: ``retry_s`` after ``StoreAway`` or ``OSError``, and in the next ``run`` after
    any other error, which ends this one. ``_pause_s`` after so many items, others are written too.

    ``lost`` hears of each loss, the log too: ``says`` that, and when an outage begins.
    """

    _write: Callable[[], Awaitable[None]]
    _pause_s: Callable[[int], float]

    def __init__(
        self, lost: Callable[[int], object], says: tuple[str, str], retry_s: float = 1.0
    ) -> None:
        self._lost, self._says, self._retry_s = lost, says, retry_s
        self._waiting: list[T] = []
        self._waiting_bytes = 0
        self._away = ""
        self._changed, self._idle, self._closing = (asyncio.Event() for _ in range(3))
        self._idle.set()

    def _put(self, item: T, size: int, max_items: int, max_bytes: int) -> None:
        size += self._waiting_bytes
        if len(self._waiting) >= max_items or size > max_bytes:
            self._lose(1, "too many wait for the disk or the database")
            return
        self._waiting.append(item)
        self._waiting_bytes = size
        self._idle.clear()
        self._changed.set()

    async def run(self) -> None:
        """For as long as the worker lives."""
        if self._waiting:
            self._changed.set()
        while await self._changed.wait():
            await self._write_changes()

    async def _write_changes(self) -> None:
        while self._changed.is_set():
            self._changed.clear()
            items = len(self._waiting)
            await self.flush()
            if self._away:
                self._changed.set()
                await asyncio.sleep(self._retry_s)
                continue
            if not self._waiting:
                self._idle.set()
            await self._pause(self._pause_s(items))

    async def flush(self) -> None:
        """Write what waits, as far as disk and database take it now."""
        try:
            await self._write()
            self._away = ""
        except (StoreAway, OSError) as error:
            self._tell(str(error) or "no answer")

    def _tell(self, away: str) -> None:
        if away != self._away:
            self._away = away
            _log.info(self._says[0], extra={"fields": {"why": away}})

    async def _pause(self, seconds: float) -> None:
        """Or until the end: nothing is paused for then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    async def _end(self, timeout_s: float) -> None:
        """Give what waits so long to be written."""
        self._closing.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        self._lose(len(self._waiting), "the worker ends")

    def _lose(self, count: int, why: str) -> None:
        if count:
            self._lost(count)
            _log.info(self._says[1], extra={"fields": {"count": count, "why": why}})
