"""A request that loses its worker is drawn elsewhere: the same picture, in its old place."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, aconnect_sse

from loadtest import faults
from loadtest.traffic import check_picture, pixels_of
from loadtest.waiting import until_async as until
from tests.cluster.conftest import RunningCell, started

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("slow_cell"),
    pytest.mark.long,
]
SIZE = "256x256"


def running_on(cell: RunningCell) -> str:
    """The one worker that is drawing now."""
    running = (str(w["name"]) for w in cell.state()["workers"] if w["running"])
    found = next(running, "")  # a StopIteration would be lost in a thread's future, and hang
    assert found, "nobody draws any more"
    return found


async def draw(http: httpx.AsyncClient, cell: RunningCell, **body: Any) -> httpx.Response:
    return await http.post(f"{cell.url}/v1/images/generations", json={"size": SIZE, **body})


def test_replay_draws_the_same_picture(slow_cell: RunningCell) -> None:
    async def scenario() -> None:
        async with httpx.AsyncClient(timeout=60) as http:
            drawing = asyncio.create_task(draw(http, slow_cell, prompt="again"))
            await until(lambda: any(w["running"] for w in slow_cell.state()["workers"]), 5, "drawn")
            victim = running_on(slow_cell)
            faults.kill(slow_cell, victim)
            response = await drawing
            assert response.headers["x-worker"] != victim
            (item,) = response.json()["data"]
            again = await draw(http, slow_cell, prompt="again", seed=item["seed"])
            assert (
                pixels_of(item["b64_json"]) == pixels_of(again.json()["data"][0]["b64_json"])
            ).all()
        await slow_cell.all_open()

    asyncio.run(scenario())


async def events(
    http: httpx.AsyncClient, cell: RunningCell, **body: Any
) -> AsyncIterator[ServerSentEvent]:
    url = f"{cell.url}/v1/images/generations"
    body = {"size": SIZE, "stream": True, **body}
    async with aconnect_sse(http, "POST", url, json=body) as source:
        async for event in source.aiter_sse():
            yield event


def test_cut_stream_is_seen_and_its_resubmission_is_the_same_picture(
    slow_cell: RunningCell,
) -> None:
    seeds: list[int] = []
    seen: list[str] = []

    async def watch_until_cut(http: httpx.AsyncClient) -> None:
        async for event in events(http, slow_cell, prompt="a stream"):
            seen.append(event.event)
            seeds.extend(event.json().get("seeds", []))
            if event.event == "image_generation.step" and event.json()["step"] == 2:
                await asyncio.to_thread(kill_drawing, slow_cell)

    async def scenario() -> None:
        async with httpx.AsyncClient(timeout=60) as http:
            with pytest.raises(httpx.RemoteProtocolError):
                await watch_until_cut(http)
            assert "image_generation.done" not in seen
            body = {"prompt": "a stream", "seed": seeds[0]}
            again = [e async for e in events(http, slow_cell, **body)]
            assert again[-1].event == "image_generation.done"
            picture = next(e.json() for e in again if e.event == "image_generation.completed")
            assert picture["seed"] == seeds[0]
            assert check_picture(picture, {**body, "size": SIZE}, synthetic=True) == ""
        await slow_cell.all_open()

    asyncio.run(scenario())


def kill_drawing(cell: RunningCell) -> None:
    faults.kill(cell, running_on(cell))


@pytest.fixture(scope="module")
def one_by_one() -> Iterator[RunningCell]:
    """Three workers that draw one picture after the other."""
    with started(model="synthetic:step_ms=250", max_batch=1) as running:
        yield running


Draw = Callable[[httpx.AsyncClient, RunningCell, str], Awaitable[None]]


async def plain(http: httpx.AsyncClient, cell: RunningCell, prompt: str) -> None:
    response = await draw(http, cell, prompt=prompt)
    assert response.status_code == 200, response.text


async def resumed(http: httpx.AsyncClient, cell: RunningCell, prompt: str) -> None:
    """A stream that is cut, and sent again."""
    body: dict[str, Any] = {"prompt": prompt}

    async def follow() -> str:
        async for event in events(http, cell, **body):
            if event.event == "image_generation.queued":
                told = event.json()
                body.update(seed=told["seeds"][0], resume=told["resume"])
        return event.event

    with pytest.raises(httpx.RemoteProtocolError):
        await follow()
    assert await follow() == "image_generation.done"


@pytest.mark.parametrize("first", [plain, resumed])
def test_request_that_lost_its_worker_keeps_its_place(one_by_one: RunningCell, first: Draw) -> None:
    """Drawn before all that came later and had not begun, on whichever worker it lands."""
    cell = one_by_one

    async def scenario() -> None:
        finished: list[str] = []

        def drawing() -> bool:
            return any(w["running"] for w in cell.state()["workers"])

        async with httpx.AsyncClient(timeout=60) as http:

            async def client(name: str, ask: Draw = plain) -> None:
                await ask(http, cell, name)
                finished.append(name)

            await until(lambda: not drawing(), 5, "the other test's pictures are done")
            tasks = [asyncio.create_task(client("first", first))]
            await until(drawing, 5, "first")
            victim = running_on(cell)
            for number in range(8):
                tasks.append(asyncio.create_task(client(f"later {number}")))
                await asyncio.sleep(0.05)
            faults.kill(cell, victim)
            await asyncio.gather(*tasks)
            # The other two workers had one each in the making; nobody else may be before it.
            assert finished.index("first") <= 2
        await cell.all_open()

    asyncio.run(scenario())
