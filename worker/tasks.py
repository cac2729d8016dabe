"""Background work of a worker: a loop that dies is logged, counted and started again.

Nobody awaits such a loop, so that without this its death would show in nothing but its effects:
keys that stay good, usage that is never entered, disks that fill.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from worker import log

FIRST_WAIT_S = 0.5
MOST_WAIT_S = 30.0
_WELL_S = 60.0
"""A loop that lived so long begins with the first wait again."""


class BackgroundTasks:
    """Create it inside an event loop. Whatever it keeps ends with ``close``, threads excepted:
    those end when their loop returns."""

    def __init__(
        self, first_wait_s: float = FIRST_WAIT_S, most_wait_s: float = MOST_WAIT_S
    ) -> None:
        self.restarts: dict[str, int] = {}
        """How often each loop died and was started again."""
        self._waits_s = first_wait_s, most_wait_s
        self._tasks: set[asyncio.Task[None]] = set()

    def keep(self, name: str, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``loop``, which never returns by itself, and run it again whenever it ends."""
        self.restarts[name] = 0
        self._start(self._run_again_and_again(name, loop))

    def keep_thread(self, name: str, loop: Callable[[], None]) -> threading.Thread:
        """Run ``loop`` in a daemon thread until it returns, and again whenever it raises."""
        self.restarts[name] = 0
        thread = threading.Thread(target=self._until_returned, args=(name, loop), name=name)
        thread.daemon = True
        thread.start()
        return thread

    def once(
        self, name: str, work: Coroutine[Any, Any, None], on_failure: Callable[[], None]
    ) -> None:
        """Run ``work``, which cannot be repeated; ``on_failure`` is called where it raises."""
        self._start(self._run_once(name, work, on_failure))

    async def close(self) -> None:
        """End all tasks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_again_and_again(
        self, name: str, loop: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        wait = _Wait(*self._waits_s)
        while True:
            began = time.monotonic()
            try:
                await loop()
                error: BaseException = RuntimeError("it returned")
            except asyncio.CancelledError as cancelled:
                if _is_being_cancelled():
                    raise
                error = cancelled  # of something that it waited for
            except Exception as raised:
                error = raised
            await asyncio.sleep(self._died(name, error, wait, began))

    def _until_returned(self, name: str, loop: Callable[[], None]) -> None:
        wait = _Wait(*self._waits_s)
        while True:
            began = time.monotonic()
            try:
                loop()
            except BaseException as error:
                time.sleep(self._died(name, error, wait, began))
            else:
                return

    def _died(self, name: str, error: BaseException, wait: "_Wait", began: float) -> float:
        """How long to wait before the next start."""
        self.restarts[name] += 1
        wait_s = wait.after(time.monotonic() - began)
        log.failure("background task died", error, task=name, again_in_s=wait_s)
        return wait_s

    async def _run_once(
        self, name: str, work: Coroutine[Any, Any, None], on_failure: Callable[[], None]
    ) -> None:
        try:
            await work
        except asyncio.CancelledError as error:
            if _is_being_cancelled():
                raise
            log.failure("background task failed", error, task=name)
            on_failure()
        except Exception as error:
            log.failure("background task failed", error, task=name)
            on_failure()


class _Wait:
    """Doubles with each death in a row, up to a bound."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s = self._next_s = first_s
        self._most_s = most_s

    def after(self, lived_s: float) -> float:
        wait_s = self._first_s if lived_s > _WELL_S else self._next_s
        self._next_s = min(self._most_s, 2 * wait_s)
        return wait_s


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
