"""A cell of several models, changed while clients draw with all of them: nothing is lost, and
nobody gets another model's picture. Pictures say who drew them: each model has steps of its own."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from loadtest.traffic import pixels_of
from loadtest.waiting import until_async as until
from tests.cluster.conftest import RunningCell, edit, started
from worker.models.synthetic import text_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SOURCE = "synthetic:step_ms=40"
ONE = f'[model]\nsource = "{SOURCE}"'
TWO = f"""[[models]]
name = "turbo"
source = "{SOURCE}"
[[models]]
name = "photo"
source = "{SOURCE},max_tokens=50"
steps = 3
aliases = ["camera"]
"""
THREE = f"""{TWO}[[models]]
name = "third"
source = "{SOURCE}"
steps = 5
"""
STEPS = {"turbo": 8, "photo": 3, "third": 5}


@pytest.fixture(scope="module")
def cell() -> Iterator[RunningCell]:
    with started(model=SOURCE, workers=2) as running:
        yield running


def serve(cell: RunningCell, old: str, new: str, *, more: str = "", less: str = "") -> None:
    """Another list of models; a worker with ``more`` besides, or without that with ``less``."""
    edit(cell, old, new)
    text = cell.config_path.read_text()
    if less:
        text = text.replace(worker(less), "")
    cell.config_path.write_text(text + (worker(more) if more else ""))


def worker(model: str) -> str:
    return f'\n[[workers]]\ndevice = "cpu"\nmodel = "{model}"\nthreads = 1\n'


@contextlib.asynccontextmanager
async def drawing_with(cell: RunningCell, model: str, clients: int = 3) -> AsyncIterator[list[str]]:
    """Clients that ask for ``model`` all the time. Each answer must be its; what was answered."""
    said: list[str] = []
    stop = asyncio.Event()

    async def ask() -> None:
        # nginx before 1.27.4 closes kept connections when it is reloaded.
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=cell.url, timeout=120, limits=limits) as http:
            while not stop.is_set():
                said.append(await drawn(http, model))

    tasks = [asyncio.create_task(ask()) for _ in range(clients)]
    yield said
    stop.set()
    await asyncio.gather(*tasks)
    assert said
    assert set(said) == {model}, (said, cell.story())


async def drawn(http: httpx.AsyncClient, model: str, **more: Any) -> str:
    """Which model drew what was asked of ``model``, or what came instead."""
    prompt = os.urandom(4).hex()
    body = {"prompt": prompt, "size": "64x64", "model": model, **more}
    reply = await http.post("/v1/images/generations", json=body)
    if reply.status_code != 200:
        return reply.text
    (item,) = reply.json()["data"]
    known = {f"{prompt}|{item['seed']}|{steps}": name for name, steps in STEPS.items()}
    return known[text_of(pixels_of(item["b64_json"]))]


async def up(cell: RunningCell) -> str:
    done = await cell.run("up")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_models_come_and_go_under_load_and_nothing_is_lost(cell: RunningCell) -> None:
    async def scenario() -> None:
        async with httpx.AsyncClient(base_url=cell.url, timeout=60) as http:
            async with cell.traffic(**PLAIN):
                serve(cell, ONE, TWO, more="photo")
                await up(cell)
            assert await drawn(http, "photo") == "photo"
            assert await drawn(http, "Camera") == "photo"
            assert await drawn(http, "dall-e-3", response_format="b64_json") == "turbo"
            async with cell.traffic(**PLAIN):
                os.kill(cell.pid("w1"), signal.SIGKILL)
                await cell.all_open()
            await last_of_a_model_finishes_its_queue(cell, http)
            stay = {name: cell.pid(name) for name in ("w1", "w2", "w3")}
            async with (
                cell.traffic(**PLAIN),
                drawing_with(cell, "photo"),
            ):
                serve(cell, TWO, THREE, more="third")
                await up(cell)
                async with drawing_with(cell, "third"):
                    await asyncio.sleep(0)
                told = (await http.get("/v1/models")).json()["data"]
                own = [each["id"] for each in told if each["alias_of"] is None]
                assert own == ["turbo", "photo", "third"]
                serve(cell, THREE, TWO, less="third")
                await up(cell)
                gone = await http.post(
                    "/v1/images/generations", json={"prompt": "a", "model": "third"}
                )
                assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
            assert {name: cell.pid(name) for name in stay} == stay  # none was restarted for that
            shown = (await cell.run("status")).stdout
            assert ("model" in shown, "photo" in shown) == (True, True)
            async with cell.traffic(**PLAIN):
                serve(cell, TWO, ONE, less="photo")
                await up(cell)

    asyncio.run(scenario())


async def last_of_a_model_finishes_its_queue(cell: RunningCell, http: httpx.AsyncClient) -> None:
    """Others are in the pool, and none of them could draw what it would hand back."""
    asked = {"prompt": "a", "model": "photo", "steps": 30}
    sizes = ("64x64", "64x80", "64x96")
    replies = [
        asyncio.create_task(http.post("/v1/images/generations", json={**asked, "size": size}))
        for size in sizes
    ]

    def taken() -> bool:
        seen = next(each for each in cell.state()["workers"] if each["name"] == "w3")
        return bool(seen["queued"] + seen["running"] == len(sizes))

    await until(taken, 20.0, "all taken by w3")
    done = await cell.run("restart", "w3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(await reply).status_code for reply in replies] == [200] * len(sizes)


def plain(client: int, turn: int) -> dict[str, object]:
    """It names no model: the first draws it, in its eight steps."""
    return {"prompt": f"client {client} turn {turn} {os.urandom(4).hex()}", "size": "64x64"}


PLAIN = {"clients": 6, "slow_readers": 0, "body": plain, "resends": True}
