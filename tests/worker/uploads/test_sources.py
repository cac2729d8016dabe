"""Requests with pictures are read a few at a time, and those that wait are bounded."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from worker.errors import Overloaded
from worker.uploads import sources
from worker.uploads.sources import MAX_WAITING, READ_AT_ONCE, Sources

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(20)]


async def busy(stack: AsyncExitStack) -> Sources:
    """All turns are taken."""
    found = Sources()
    for _ in range(READ_AT_ONCE):
        await stack.enter_async_context(found.reading())
    return found


async def read(crowded: Sources) -> str:
    async with crowded.reading():
        return "read"


async def test_those_who_wait_are_bounded_and_all_are_read_in_the_end() -> None:
    async with AsyncExitStack() as stack:
        crowded = await busy(stack)
        waiting = [asyncio.create_task(read(crowded)) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)  # each stands in line
        with pytest.raises(Overloaded) as refused:
            await read(crowded)
        assert refused.value.retry_after_s >= 1
    assert await asyncio.gather(*waiting) == ["read"] * MAX_WAITING


async def test_who_waits_too_long_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "TURN_S", 0.01)
    async with AsyncExitStack() as stack:
        crowded = await busy(stack)
        with pytest.raises(Overloaded):
            await read(crowded)
    assert await read(crowded) == "read"  # its place in the line is free again


async def test_who_leaves_the_line_keeps_nobody_waiting() -> None:
    async with AsyncExitStack() as stack:
        crowded = await busy(stack)
        gone = asyncio.create_task(read(crowded))
        stays = asyncio.create_task(read(crowded))
        await asyncio.sleep(0)
        gone.cancel()
    assert await stays == "read"


async def test_the_longer_reading_takes_the_later_to_come_again() -> None:
    async with AsyncExitStack() as stack:
        crowded = await busy(stack)
        crowded._read_s = 4.0
        waiting = [asyncio.create_task(read(crowded)) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await read(crowded)
    await asyncio.gather(*waiting)
    assert refused.value.retry_after_s == 4.0 * (MAX_WAITING + READ_AT_ONCE) / READ_AT_ONCE
