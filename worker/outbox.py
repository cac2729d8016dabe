"""What is written behind an answer: it waits in a bounded queue for a thread of its own.

Log lines and the audit log each have one. Whoever puts something there never waits: neither a full
disk nor a stalled one holds up a drawing.
"""

import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class _End:
    """Behind the last item."""


class Outbox(Generic[T]):
    """``write`` gets what waits, in order, and is called again after a pause: what comes meanwhile
    is written together, and a thread that woke for each would take the interpreter each time.

    It returns True where something is left that it should be called for though nothing more comes.
    What it raises ends ``run``; whatever it has not taken is still there for the next ``run``.
    """

    def __init__(
        self, write: Callable[[Iterator[T]], bool | None], max_items: int, pause_s: float
    ) -> None:
        """At the end of the process nothing is paused for."""
        self._write = write
        self._max_items = max_items
        self._pause_s = pause_s
        self._items: SimpleQueue[T | _End] = SimpleQueue()
        self._left = False
        self._last = False
        self._closing = threading.Event()
        self._ended = threading.Event()
        self.lost = 0
        """Items that found the queue full."""

    def put(self, item: T) -> bool:
        """Queue ``item``, unless too many wait; whether it is queued. Never waits."""
        if self._items.qsize() >= self._max_items:
            self.lost += 1
            return False
        self._items.put(item)
        return True

    def run(self) -> None:
        """Write until all is written after ``close``. Blocks: a thread's work."""
        while self._left or not self._last:
            self._left = bool(self._write(self._waiting()))
            if not self._last:
                self._closing.wait(self._pause_s)
        self._ended.set()

    def close(self, timeout_s: float) -> bool:
        """Have what waits written, for at most ``timeout_s``; whether all of it is."""
        self._closing.set()
        self._items.put(_End())
        return self._ended.wait(timeout_s)

    def _waiting(self) -> Iterator[T]:
        wait = not (self._left or self._last)
        while True:
            try:
                item = self._items.get(wait)
            except Empty:
                return
            if isinstance(item, _End):
                self._last = True
                return
            yield item
            wait = False
