"""Cells of one and two workers: each restart and each death takes a good part of the pool."""

import asyncio

import httpx
import pytest

from loadtest.faults.workers import kill
from tests.cluster.conftest import SHARED, STEPS, edit, started

pytestmark = [pytest.mark.cluster, pytest.mark.long]
DRAW = "/v1/images/generations"
MODEL = f"{STEPS},load_ms=3000"
SLOW = "synthetic:step_ms=60,row_ms=40,load_ms=3000"


def test_the_only_worker_is_changed_once_an_added_one_draws() -> None:
    async def scenario() -> None:
        async with cell.traffic(resends=True):  # nginx is reloaded
            edit(cell, "count = 1", "count = 2")
            edit(cell, "[limits.request]", "[limits.request]\nmax_steps = 44")
            done = await cell.run("up", "--no-draw")
        assert done.returncode == 0, done.stderr

    with started(workers=1, model=MODEL) as cell:
        asyncio.run(scenario())


def test_the_only_worker_goes_with_a_warning() -> None:
    cell = SHARED.of(workers=1, model=SLOW, max_batch=1)
    done = cell.zimage("restart", "--rolling")
    assert done.returncode == 0, done.stderr
    assert "nobody draws until w1 is back" in done.stderr


def test_the_only_worker_draws_what_it_accepted_before_it_goes() -> None:
    async def scenario() -> None:
        async with httpx.AsyncClient(base_url=cell.url, timeout=60) as client:
            bodies = ({"prompt": str(number), "size": "256x256"} for number in range(12))
            asked = [asyncio.create_task(client.post(DRAW, json=body)) for body in bodies]
            await asyncio.sleep(1.0)
            done = await cell.run("restart", "--rolling")
            statuses = [(await each).status_code for each in asked]
        assert done.returncode == 0, done.stderr
        assert statuses == [200] * 12

    cell = SHARED.of(workers=1, model=SLOW, max_batch=1)
    asyncio.run(scenario())


def test_who_does_not_draw_is_restarted_first() -> None:
    async def scenario() -> None:
        async with cell.traffic():
            kill(cell, "w2")
            await cell.closed("w2")
            done = await cell.run("restart", "--rolling")
        assert done.returncode == 0, done.stderr
        assert done.stdout.index("w2: drain") < done.stdout.index("w1: drain")

    cell = SHARED.of(workers=2, model=SLOW, max_batch=2)
    asyncio.run(scenario())


def test_two_workers_die_in_turns_under_a_queue_longer_than_a_start() -> None:
    """Each when the other is just back: some requests are in the queues of three that die."""

    async def scenario() -> None:
        async with cell.traffic(clients=24):
            for worker in ("w1", "w2") * 3:
                kill(cell, worker)
                await cell.closed(worker)
                await cell.all_open()

    cell = SHARED.of(workers=2, model=SLOW, max_batch=2)
    asyncio.run(scenario())


def test_two_workers_roll_under_a_queue_longer_than_a_start() -> None:
    """What waits at the second one has met the first one's closed gate."""

    async def scenario() -> None:
        async with cell.traffic(clients=24) as traffic:
            done = await cell.run("restart", "--rolling")
            assert done.returncode == 0, done.stderr
        assert max(outcome.latency_s for outcome in traffic.outcomes) > 4

    cell = SHARED.of(workers=2, model=SLOW, max_batch=2)
    asyncio.run(scenario())
