"""What users see of each fault: nothing, while one worker is left."""

import asyncio
import os
import signal
import time

import httpx
import pytest

from loadtest import faults
from loadtest.waiting import until_async as until
from tests.cluster.conftest import RunningCell

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("cell"),
    pytest.mark.long,
]
OUT_S = 1.5
"""Before the step's allowance of 2 s is over. ``scripts/prove basics`` wants a second."""


def test_killed_worker_is_replaced_unseen(cell: RunningCell) -> None:
    async def scenario() -> None:
        async with cell.traffic():
            pid = faults.kill(cell, "w1")
            assert await cell.closed("w1") < OUT_S
            await cell.all_open()
            assert cell.pid("w1") != pid

    asyncio.run(scenario())


def test_stopped_worker_leaves_within_a_second_and_is_replaced(cell: RunningCell) -> None:
    async def scenario() -> None:
        async with cell.traffic():
            pid = cell.pid("w2")
            faults.stop(cell, "w2")
            assert await cell.closed("w2") < OUT_S
            await cell.all_open()
            assert cell.pid("w2") != pid

    asyncio.run(scenario())


def test_worker_that_pauses_briefly_comes_back_unharmed(cell: RunningCell) -> None:
    async def scenario() -> None:
        async with cell.traffic():
            pid = cell.pid("w3")
            resume = faults.stop(cell, "w3")
            await cell.closed("w3")
            resume()
            await cell.all_open()
            assert cell.pid("w3") == pid

    asyncio.run(scenario())


def poison(fault: str) -> dict[str, str]:
    return {"prompt": f"fault:{fault} {os.urandom(4).hex()}", "size": "256x256"}


async def insist(http: httpx.AsyncClient, cell: RunningCell, body: object) -> httpx.Response:
    """Post as SDKs do: come again when a 503 says so."""
    while True:
        response = await http.post(f"{cell.url}/v1/images/generations", json=body)
        if response.status_code != 503:
            return response
        await asyncio.sleep(float(response.headers["retry-after"]))


@pytest.mark.parametrize(
    ("fault", "code"), [("hang", "too_slow"), ("gil", "too_slow"), ("exit", "request_refused")]
)
def test_poison_is_refused_and_its_neighbours_are_drawn(
    cell: RunningCell, fault: str, code: str
) -> None:
    """Hang inside a step, every thread blocked, death inside a step: 422 in the end, and no
    neighbour sees anything. In company its first victim is not yet held against it, and nginx
    asks no worker twice, so that three workers may die and the first answer may be 503."""

    async def scenario() -> None:
        async with cell.traffic(), httpx.AsyncClient(timeout=120) as http:
            pids = {worker: cell.pid(worker) for worker in cell.workers()}
            response = await insist(http, cell, poison(fault))
            assert response.status_code == 422
            assert response.json()["error"]["code"] == code
            await cell.all_open()
            assert any(cell.pid(worker) != pid for worker, pid in pids.items())

    asyncio.run(scenario())


def test_poison_on_an_idle_cell_is_refused_after_two_workers(cell: RunningCell) -> None:
    async def scenario() -> None:
        pids = {worker: cell.pid(worker) for worker in cell.workers()}
        async with httpx.AsyncClient(timeout=120) as http:
            url, body = f"{cell.url}/v1/images/generations", poison("exit")
            assert (await http.post(url, json=body)).status_code == 422
            assert (await http.post(url, json=body)).status_code == 422

        def successors() -> int:
            return sum(cell.pid(worker) != pid for worker, pid in pids.items())

        await until(lambda: successors() == 2, 90, "two successors")
        await cell.all_open()
        assert successors() == 2

    asyncio.run(scenario())


def test_a_call_that_never_ends_is_refused_as_too_slow_after_two_workers(
    cell: RunningCell,
) -> None:
    async def scenario() -> None:
        pids = {worker: cell.pid(worker) for worker in cell.workers()}
        async with httpx.AsyncClient(timeout=120) as http:
            response = await insist(http, cell, poison("hang"))
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (422, "too_slow", "size")
        # 2 s at first, and four times as long for the second worker.
        assert "256x256 in 8 steps took too long" in error["message"]
        assert "not over after 8 s" in error["message"]
        assert "change the prompt" not in error["message"]
        await cell.all_open()
        assert sum(cell.pid(worker) != pid for worker, pid in pids.items()) == 2

    asyncio.run(scenario())


def test_worker_that_says_503_is_left_alone_and_comes_back(cell: RunningCell) -> None:
    async def scenario() -> None:
        transport = httpx.AsyncHTTPTransport(uds=str(cell.layout.socket("w1")))
        async with (
            cell.traffic(),
            httpx.AsyncClient(transport=transport, base_url="http://w1") as worker,
        ):
            pid = cell.pid("w1")
            assert (await worker.post("/admin/drain")).status_code == 200
            assert await cell.closed("w1") < OUT_S
            assert (await worker.post("/admin/undrain")).status_code == 200
            await cell.all_open()
            assert cell.pid("w1") == pid

    asyncio.run(scenario())


def test_crash_loop_stays_out_and_ends_by_itself(cell: RunningCell) -> None:
    async def scenario() -> None:
        async with cell.traffic() as traffic:
            with faults.crash_loop(cell, "w1"):
                assert await cell.closed("w1") < OUT_S
                await traffic.until_served(40)
                assert "w1" not in cell.open()
            await cell.all_open(120)

    asyncio.run(scenario())


def test_all_workers_gone_is_said_honestly_and_heals(cell: RunningCell) -> None:
    async def scenario() -> None:
        for worker in cell.workers():
            faults.kill(cell, worker)
        async with httpx.AsyncClient(timeout=30) as http:
            response = await http.post(
                f"{cell.url}/v1/images/generations", json={"prompt": "a", "size": "256x256"}
            )
            assert response.status_code == 503
            assert 1 <= int(response.headers["retry-after"]) <= 120
            assert response.json()["error"]["type"] == "server_error"
        await cell.all_open()
        async with cell.traffic():
            pass

    asyncio.run(scenario())


def test_guard_killed_is_back_and_still_guards(cell: RunningCell) -> None:
    async def scenario() -> None:
        async with cell.traffic():
            await cell.all_open()  # one that was slow to answer may be out for a moment
            before = cell.state()["at"]
            (guard,) = faults.process_ids(cell.layout.guard_json)
            os.kill(guard, signal.SIGKILL)
            assert cell.open() == set(cell.workers())
            await until(lambda: cell.state()["at"] > before + 2, 15, "the guard's state is fresh")
            faults.kill(cell, "w1")
            assert await cell.closed("w1") < OUT_S
            await cell.all_open()

    asyncio.run(scenario())


def test_rolling_restart_loses_nothing(cell: RunningCell) -> None:
    async def scenario() -> None:
        async with cell.traffic():
            pids = {worker: cell.pid(worker) for worker in cell.workers()}
            done = await cell.run("restart", "--rolling")
            assert done.returncode == 0, done.stdout + done.stderr
            assert all(cell.pid(worker) != pid for worker, pid in pids.items())

    asyncio.run(scenario())


def test_drained_worker_gets_no_work_until_undrained(cell: RunningCell) -> None:
    async def scenario() -> None:
        async with cell.traffic() as traffic:
            assert (await cell.run("drain", "w2")).returncode == 0
            drained_at = time.monotonic()
            await traffic.until_served(30 + traffic.clients)
            # Not those that read slowly what was drawn before.
            late = [outcome for outcome in traffic.outcomes if outcome.started > drained_at]
            assert late
            assert all(outcome.worker != "w2" for outcome in late)
            assert (await cell.run("undrain", "w2")).returncode == 0
            await cell.all_open()

    asyncio.run(scenario())


def test_operator_breaks_a_worker_and_sees_it_heal(cell: RunningCell) -> None:
    async def scenario() -> None:
        async with cell.traffic():
            wrong = await cell.run("chaos", "nginx-reloaded", "--worker", "w1")
            assert (wrong.returncode, "leave --worker away" in wrong.stderr) == (1, True)
            done = await cell.run("chaos", "pause", "--worker", "w1")
            assert done.returncode == 0, done.stdout + done.stderr
            assert "pause w1, out after 0." in done.stdout

    asyncio.run(scenario())
