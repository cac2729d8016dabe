import asyncio
import threading

import pytest

from worker.threads import ThreadPool, in_daemon_thread

pytestmark = pytest.mark.anyio


async def test_jobs_are_done_in_order_off_the_event_loop() -> None:
    crew, done = ThreadPool(1, "crew"), []

    def job(k: int) -> int:
        done.append(k)
        return threading.get_ident()

    threads = await asyncio.gather(*[crew.do(lambda k=k: job(k)) for k in range(20)])  # type: ignore[misc]
    assert done == list(range(20))
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()
    crew.close()


async def test_error_of_a_job_reaches_its_waiter_and_ends_no_thread() -> None:
    crew = ThreadPool(1, "crew")
    with pytest.raises(ZeroDivisionError):
        await crew.do(lambda: 1 // 0)
    assert await crew.do(lambda: "next") == "next"
    crew.close()


async def test_job_that_nobody_waits_for_any_more_is_not_done() -> None:
    crew, free, done = ThreadPool(1, "crew"), threading.Event(), []
    first = asyncio.create_task(crew.do(lambda: free.wait(30)))
    second = asyncio.create_task(crew.do(lambda: done.append("second")))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    free.set()
    assert await first
    assert await crew.do(lambda: list(done)) == []
    crew.close()


async def test_closed_crew_finishes_what_was_queued_and_ends() -> None:
    crew = ThreadPool(2, "closing")
    waiting = [asyncio.create_task(crew.do(lambda: "done")) for _ in range(5)]
    await asyncio.sleep(0)
    crew.close()
    assert await asyncio.gather(*waiting) == ["done"] * 5
    for thread in threading.enumerate():
        if thread.name.startswith("closing"):
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()


async def test_daemon_thread_gives_its_result_or_its_error() -> None:
    assert await in_daemon_thread(lambda: 7) == 7
    with pytest.raises(IndexError):
        await in_daemon_thread(lambda: [][1])


async def test_work_that_raises_ends_no_thread_and_counts_as_done() -> None:
    crew = ThreadPool(1, "crew")
    crew.begin(lambda: 1 // 0)
    async with asyncio.timeout(10):
        assert await crew.do(lambda: "next") == "next"
    assert await crew.do(lambda: crew.waiting) == 1  # itself
    crew.close()
