"""Sizes that no worker has drawn before, on the shipped model and busy cores."""

import asyncio

import httpx
import pytest

from tests.cluster.conftest import RunningCell, started

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400), pytest.mark.long]
DRAW = "/v1/images/generations"


def test_a_size_that_was_never_drawn_is_no_hang() -> None:
    """The first decoding of 28 times the pixels of what was measured takes longer than 5 s here."""

    async def scenario(cell: RunningCell) -> None:
        pids = {worker: cell.pid(worker) for worker in cell.workers()}
        async with httpx.AsyncClient(base_url=cell.url, timeout=300) as client:
            done = asyncio.Event()

            async def load() -> None:
                while not done.is_set():
                    body = {"prompt": "a red circle", "size": "256x256", "steps": 4}
                    assert (await client.post(DRAW, json=body)).status_code == 200

            async with asyncio.TaskGroup() as tasks:
                for _ in range(2):
                    tasks.create_task(load())
                bodies = [
                    {"prompt": "a blue square", "size": size, "steps": 1}
                    for size in ("1536x1024", "1792x1024")
                ]
                answers = await asyncio.gather(*(client.post(DRAW, json=body) for body in bodies))
                done.set()
        assert [answer.status_code for answer in answers] == [200, 200], cell.story()
        assert {worker: cell.pid(worker) for worker in cell.workers()} == pids, cell.story()

    with started(
        model="tiny", workers=2, step_allowance_s=5.0, limits="max_pixels = 1_835_008"
    ) as cell:
        asyncio.run(scenario(cell))
