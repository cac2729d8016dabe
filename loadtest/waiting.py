"""Waiting until something holds, with a deadline: every loop of load tests that looks again."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

_PAUSE_S = 0.02


def until(
    true: Callable[[], object], timeout_s: float, what: str, pause_s: float = _PAUSE_S
) -> float:
    """Wait until ``true`` holds; the seconds it took. ``TimeoutError`` names ``what``."""
    for passed_s in _looks(timeout_s):
        if true():
            return passed_s
        time.sleep(pause_s)
    raise TimeoutError(f"not within {timeout_s:g} s: {what}")


async def until_async(
    true: Callable[[], bool | Awaitable[bool]], timeout_s: float, what: str
) -> float:
    """The same on an event loop; ``true`` may be asked there."""
    for passed_s in _looks(timeout_s):
        found = true()
        if found if isinstance(found, bool) else await found:
            return passed_s
        await asyncio.sleep(_PAUSE_S)
    raise TimeoutError(f"not within {timeout_s:g} s: {what}")


def _looks(timeout_s: float) -> Iterator[float]:
    """Seconds since the first, for each look that there is time for."""
    began = time.monotonic()
    while (passed_s := time.monotonic() - began) <= timeout_s:
        yield passed_s


@contextmanager
def beside(watch: Callable[[], None], over: threading.Event) -> Iterator[None]:
    """``watch`` runs in a thread of its own until it sees ``over``, which is set at the end."""
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
