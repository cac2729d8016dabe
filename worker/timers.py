"""Deadlines that nearly nothing reaches."""

import asyncio
import time
from collections.abc import Callable

TICK_S = 0.1


class Timers:
    """Calls on the event loop what is due, or up to ``TICK_S`` later, unless it is cancelled.

    One timer of the loop looks after all of them, while there are any: one of its own for each
    deadline of each request takes more time than most of what is done for it.
    """

    def __init__(self) -> None:
        self._all: dict[object, tuple[float, Callable[[], object]]] = {}
        self._ticking = False

    def after(self, seconds: float, call: Callable[[], object]) -> object:
        """Have ``call`` called in ``seconds``; what ``cancel`` takes."""
        timer = object()
        self._all[timer] = time.monotonic() + seconds, call
        if not self._ticking:
            self._ticking = True
            loop = asyncio.get_running_loop()
            loop.call_later(TICK_S, self._tick, loop)
        return timer

    def cancel(self, timer: object) -> None:
        """Call it no more, if it was not called."""
        self._all.pop(timer, None)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        due = [timer for timer, (at, _) in self._all.items() if at <= now]
        self._ticking = len(self._all) > len(due)
        if self._ticking:
            loop.call_later(TICK_S, self._tick, loop)
        for timer in due:
            loop.call_soon(self._call, timer)  # whatever one of them raises

    def _call(self, timer: object) -> None:
        _, call = self._all.pop(timer, (0.0, None))
        if call is not None:
            call()
