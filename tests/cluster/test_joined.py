"""A worker of two processes in a real cell: when its helper dies or hangs, nothing is lost."""

import asyncio
import os
import signal
import time
from functools import partial

import pytest

from loadtest.waiting import until_async as until
from tests.cluster.conftest import RunningCell, started
from tests.worker.models.parallel.test_helper import helper_of
from worker.coordination.processes import is_alive

pytestmark = [pytest.mark.cluster, pytest.mark.long]
BOTH = '[[workers]]\ndevices = "cpu,cpu"\nthreads = 1\n'
FAULTS = (signal.SIGKILL, signal.SIGSTOP)
"""A killed lead takes its helper along (tests/worker/models/parallel/test_helper), and is a killed
worker like any other."""


def small_body(client: int, turn: int) -> dict[str, object]:
    return {"prompt": f"a red circle {client} {turn}", "size": "64x64", "steps": 2}


def is_another(cell: RunningCell, dead: int) -> bool:
    return cell.pid("w2") != dead


def test_nothing_is_lost_with_a_helper() -> None:
    async def scenario(cell: RunningCell) -> None:
        async with cell.traffic(
            clients=4, slow_readers=0, synthetic=False, body=small_body, think_s=0.5
        ):
            for number in FAULTS:
                await cell.all_open()
                lead = cell.pid("w2")
                helper = helper_of(lead)
                os.kill(helper, number)
                await until(partial(is_another, cell, lead), 60.0, "another process")
                assert not is_alive(helper, time.monotonic()), number
            await cell.all_open()

    with started(workers=1, model="tiny", step_allowance_s=20.0, more=BOTH) as cell:
        asyncio.run(scenario(cell))
