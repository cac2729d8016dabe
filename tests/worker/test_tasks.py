"""A loop that nobody awaits cannot die in silence."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.worker.conftest import ready, serving, settings_in
from worker import tasks as module
from worker.lifecycle import Lifecycle
from worker.tasks import BackgroundTasks

pytestmark = pytest.mark.anyio


@pytest.fixture
async def tasks() -> AsyncIterator[BackgroundTasks]:
    made = BackgroundTasks(first_wait_s=0.001, most_wait_s=0.004)
    yield made
    await made.close()


@pytest.mark.parametrize("error", [RuntimeError("a bug"), asyncio.CancelledError(), None])
async def test_loop_that_ends_in_any_way_is_started_again(
    tasks: BackgroundTasks, error: BaseException | None
) -> None:
    runs, lives = 0, asyncio.Event()

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if runs == 3:
            lives.set()
            await asyncio.Event().wait()
        if error is not None:
            raise error

    tasks.keep("loop", loop)
    async with asyncio.timeout(10):
        await lives.wait()
    assert tasks.restarts == {"loop": 2}


async def test_closing_ends_it_for_good(tasks: BackgroundTasks) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def loop() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    tasks.keep("loop", loop)
    await began.wait()
    await tasks.close()
    assert ended.is_set()
    assert tasks.restarts == {"loop": 0}


async def test_thread_is_started_again_until_its_loop_returns(tasks: BackgroundTasks) -> None:
    runs, done = 0, threading.Event()

    def loop() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise SystemExit  # ends a thread without a word
        done.set()

    tasks.keep_thread("thread", loop).join(10)
    assert done.is_set()
    assert tasks.restarts == {"thread": 2}


async def test_work_that_cannot_be_repeated_tells_that_it_failed(tasks: BackgroundTasks) -> None:
    failed = asyncio.Event()

    async def work() -> None:
        raise RuntimeError("a bug")

    tasks.once("work", work(), failed.set)
    async with asyncio.timeout(10):
        await failed.wait()


def test_waits_double_to_a_bound_and_begin_again_after_a_long_life() -> None:
    wait = module._Wait(0.5, 30.0)
    assert [wait.after(0.0) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert wait.after(3600.0) == 0.5
    assert wait.after(0.0) == 1.0


async def test_worker_brings_its_dead_loops_back_and_counts_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = asyncio.Event()

    async def follow(service: Lifecycle) -> None:
        if service.tasks.restarts["ledger"]:
            back.set()
            await asyncio.Event().wait()
        raise RuntimeError("a bug")

    monkeypatch.setattr("worker.storage.ledger.Ledger.follow", lambda ledger: follow(held[0]))
    held: list[Lifecycle] = []
    async with serving(settings_in(home)) as (service, client):
        held.append(service)
        await ready(service)
        async with asyncio.timeout(10):
            await back.wait()
        assert set(service.tasks.restarts) == {"audit", "gallery", "jobs", "ledger", "retention"}
        assert (
            'zimage_task_restarts_total{task="ledger"} 1.0' in (await client.get("/metrics")).text
        )


async def test_start_that_breaks_off_ends_the_process(home: Path) -> None:
    """It would otherwise load for ever, and nobody would know why."""
    async with serving(settings_in(home), settle_memory=lambda: 1 // 0) as (service, _):
        async with asyncio.timeout(10):
            assert await service.over == 70


async def test_drain_that_breaks_off_still_ends_the_process(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lifecycle, "drain", lambda _: 1 // 0)
    async with serving(settings_in(home)) as (service, _):
        await ready(service)
        service.stop()
        async with asyncio.timeout(10):
            assert await service.over == 0
