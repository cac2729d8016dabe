import asyncio

import pytest

from worker.timers import Timers

pytestmark = pytest.mark.anyio


async def test_what_is_due_is_called_once() -> None:
    timers, called = Timers(), asyncio.Event()
    times = 0

    def call() -> None:
        nonlocal times
        times += 1
        called.set()

    timers.after(0.0, call)
    await asyncio.wait_for(called.wait(), 30)
    called.clear()
    timers.after(0.0, called.set)
    await asyncio.wait_for(called.wait(), 30)
    assert times == 1


async def test_shorter_ones_are_not_held_up_by_those_before() -> None:
    timers, called = Timers(), asyncio.Event()
    timers.after(3600.0, lambda: None)
    timers.after(0.0, called.set)
    await asyncio.wait_for(called.wait(), 30)


async def test_what_is_cancelled_is_not_called() -> None:
    timers, called, over = Timers(), [], asyncio.Event()
    timers.cancel(timers.after(0.0, lambda: called.append("cancelled")))
    timers.after(0.0, over.set)
    await asyncio.wait_for(over.wait(), 30)
    assert called == []


async def test_one_that_is_due_may_cancel_another_that_is() -> None:
    timers, called, over = Timers(), [], asyncio.Event()
    timers.after(0.0, lambda: timers.cancel(second))
    second = timers.after(0.0, lambda: called.append("second"))
    timers.after(0.0, over.set)
    await asyncio.wait_for(over.wait(), 30)
    assert called == []


async def test_an_error_in_one_ends_no_others() -> None:
    timers, called = Timers(), asyncio.Event()
    loop, errors = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))

    def fail() -> None:
        raise ValueError

    timers.after(0.0, fail)
    timers.after(0.0, called.set)
    await asyncio.wait_for(called.wait(), 30)
    assert [type(error) for error in errors] == [ValueError]
