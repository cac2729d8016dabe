"""``zimage calibrate`` and ``zimage trace`` on a cell that draws, with its guard watching."""

import json
import time

import anyio
import httpx
import pytest

from tests.cluster.conftest import RunningCell, mixed_body

pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.xdist_group("cell")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def small(client: int, turn: int) -> dict[str, object]:
    return mixed_body(client + 2, turn)


async def livez(cell: RunningCell, worker: str) -> dict[str, object]:
    transport = httpx.AsyncHTTPTransport(uds=str(cell.layout.socket(worker)))
    async with httpx.AsyncClient(transport=transport) as client:
        found: dict[str, object] = (await client.get("http://worker/livez")).json()
    return found


async def test_a_worker_is_measured_while_the_others_draw(cell: RunningCell) -> None:
    began, before = time.time(), {name: await livez(cell, name) for name in cell.workers()}
    async with cell.traffic(clients=4, slow_readers=0, body=small):
        done = await cell.run("calibrate", "w2", "--sizes", "64x64", "--repeats", "1", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        await cell.all_open()
    after = {name: await livez(cell, name) for name in cell.workers()}
    # Only the measured worker was stopped: the guard took its absence for no fault.
    assert {name for name in after if after[name]["pid"] != before[name]["pid"]} == {"w2"}
    assert "kill" not in cell.story(since=began)
    assert not cell.layout.drained_flag("w2").exists()


async def test_its_next_start_uses_the_table(cell: RunningCell) -> None:
    done = await cell.run("calibrate", "w3", "--sizes", "64x64", "--repeats", "1", "--json")
    table = json.loads(done.stdout[done.stdout.index("{") :])
    assert [row["rows"] for row in table["rows"]] == [1, 2, 3, 4]
    await cell.all_open()
    lines = (cell.layout.log("w3")).read_text().splitlines()
    costs = [json.loads(line) for line in lines if '"event": "costs"' in line]
    assert costs[-1]["calibrated"]


async def test_a_drained_worker_stays_out_after_it_was_measured(cell: RunningCell) -> None:
    assert (await cell.run("drain", "w1")).returncode == 0
    done = await cell.run("calibrate", "w1", "--sizes", "64x64", "--repeats", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    await anyio.sleep(1.0)
    assert cell.open() == {"w2", "w3"}
    assert (await cell.run("undrain", "w1")).returncode == 0
    await cell.all_open()


async def test_trace_tells_the_share_of_every_worker(cell: RunningCell) -> None:
    async with cell.traffic(clients=6, slow_readers=0, body=small):
        done = await cell.run("trace", "--seconds", "2", "--json")
    traces = {each["worker"]: each for each in json.loads(done.stdout)}
    assert set(traces) == set(cell.workers())
    for each in traces.values():
        assert each["steps"] > 0
        # 80 ms a step asleep: whatever else this machine does, the most of it is the pipeline's.
        assert each["device_s"] / each["busy_s"] > 0.5
