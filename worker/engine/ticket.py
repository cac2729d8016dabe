"""What a caller holds: its events, its result, and the way out."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable

from worker.engine.request import Drawn, DrawRequest, Event, Queued, Stepped
from worker.errors import ZimageError

Finish = Callable[[Drawn, "Ticket"], object]
"""Takes a picture from the drawing thread without waiting, does more with it elsewhere, and calls
the ticket's ``deliver`` with it, or with a ``Drawn`` that tells more; or else its ``fail``."""


class Ticket:
    """One admitted request. The driver posts from its thread; the methods without an underscore
    belong to the event loop.

    A slow reader finds the latest position and the latest step of each picture, not all of them,
    so what waits for it is bounded by its own pictures and previews.
    """

    keep: bool = False
    """Set once part of the answer is sent: a drain then lets the request finish here."""

    def __init__(
        self, request: DrawRequest, cancel: Callable[[], None], finish: Finish | None = None
    ) -> None:
        self.request = request
        self._finish = finish
        self._wanted = (Drawn, Stepped) if request.followed else (Drawn,)
        self._cancel = cancel
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._pending: dict[object, Event] = {}
        self._done: set[int] = set()
        self._error: ZimageError | None = None
        self._over = False
        self._listening = False
        self._waking = False
        self._news = False
        self._waiter: asyncio.Future[None] | None = None

    async def events(self) -> AsyncGenerator[Event, None]:
        """Every event, once, to one reader; ends after the last Drawn or raises ZimageError."""
        self._listening = True
        while True:
            events, over = self._take()
            while events:  # nothing here may hold the pixels of one while the next is waited for
                yield events.popleft()
            if over:
                break
            await self._woken_again()
        if self._error:
            raise self._error

    async def result(self) -> list[Drawn]:
        """All pictures in the order of ``image_index``, once, to one reader; raises ZimageError."""
        while not self._over:
            await self._woken_again()
        if self._error:
            raise self._error
        events, _ = self._take()
        drawn = [event for event in events if isinstance(event, Drawn)]
        return sorted(drawn, key=lambda one: one.image_index) if len(drawn) > 1 else drawn

    def cancel(self) -> None:
        """Nobody wants it any more: it leaves the queue at once, a running batch within a step."""
        self._cancel()

    def post(self, event: Event) -> None:
        """From any thread: tell the reader. The last Drawn ends the request."""
        if not (self.request.watched or isinstance(event, self._wanted)):
            return
        finish = self._finish
        if finish is not None and isinstance(event, Drawn):
            finish(event, self)
        else:
            self.deliver(event)

    def deliver(self, event: Event) -> None:
        """From any thread: the reader finds ``event`` as it is."""
        with self._lock:
            if self._over:
                return
            key = _coalesced(event)
            self._pending.pop(key, None)
            self._pending[key] = event
            if isinstance(event, Drawn):
                self._done.add(event.image_index)
                self._over = len(self._done) == len(self.request.specs)
            self._end()
        self._wake()

    def fail(self, error: ZimageError) -> None:
        """From any thread: end the request with ``error``, unless it has ended."""
        with self._lock:
            if self._over:
                return
            self._error, self._over = error, True
            self._end()
        self._wake()

    def _end(self) -> None:
        # It may know its caller, who knows this ticket.
        if self._over:
            self._finish = None

    def _take(self) -> tuple[deque[Event], bool]:
        with self._lock:
            events, self._pending = deque(self._pending.values()), {}
            return events, self._over

    def _wake(self) -> None:
        # At most one wake-up is on its way: a blocked event loop must not collect them.
        with self._lock:
            if self._waking or not (self._listening or self._over):
                return
            self._waking = True
        # Not under the lock: the event loop runs at once and would wait for it.
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._woken)

    def _woken(self) -> None:
        with self._lock:
            self._waking = False
        self._news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _woken_again(self) -> None:
        # A future takes half of what an asyncio.Event takes.
        if not self._news:
            self._waiter = self._loop.create_future()
            await self._waiter
        self._news = False


def _coalesced(event: Event) -> object:
    if isinstance(event, Queued):
        return Queued
    if isinstance(event, Stepped):
        return Stepped, event.image_index
    return event.__class__, event.image_index, getattr(event, "partial_index", None)
