"""Work in threads for whoever waits on the event loop."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from worker import log

T = TypeVar("T")


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """The result of ``work``, from a thread that does not keep the process from ending."""
    result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    threading.Thread(target=_do, args=(work, result), name="loader", daemon=True).start()
    return await result


class ThreadPool:
    """Threads that take one job after the other.

    A ThreadPoolExecutor does the same for several times the time, most of it the event loop's.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._threads = threads
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._busy: set[int] = set()
        for k in range(threads):
            threading.Thread(target=self._run, name=f"{name}-{k}", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Jobs that are not done."""
        return self._jobs.qsize() + len(self._busy)

    async def do(self, work: Callable[[], T]) -> T:
        """The result of ``work``. Cancelled before its turn, it is not done at all."""
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put(lambda: _do(work, result))
        return await result

    def begin(self, work: Callable[[], object]) -> None:
        """From any thread, without waiting; what ``work`` raises is logged."""
        self._jobs.put(work)

    def close(self) -> None:
        """Let the threads end after what is queued. Waits for nothing."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _run(self) -> None:
        own = threading.get_ident()
        while (job := self._jobs.get()) is not None:
            self._busy.add(own)
            try:
                job()
            except Exception as error:  # whoever begins the next one needs this thread
                log.failure("work in a thread failed", error)
            finally:
                del job  # and the picture in it, which would stay until the next one comes
                self._busy.discard(own)


def _do(work: Callable[[], T], result: "asyncio.Future[T]") -> None:
    if result.cancelled():
        return
    value, error = None, None
    try:
        value = work()
    except BaseException as raised:
        error = raised
    with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
        result.get_loop().call_soon_threadsafe(_settle, result, value, error)


def _settle(result: "asyncio.Future[Any]", value: object, error: BaseException | None) -> None:
    if result.cancelled():
        return
    if error is None:
        result.set_result(value)
    else:
        result.set_exception(error)
