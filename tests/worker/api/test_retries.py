"""Clients whose connection a proxy has closed ask again, as SDKs do, and get what was drawn."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from starlette.types import ASGIApp, Message

from tests.worker.conftest import migrated, ready, serving
from tests.worker.engine.fakes import GatedPipeline
from worker.api import retries
from worker.api.routes.images import default_seed
from worker.lifecycle import Lifecycle
from worker.settings import Settings

pytestmark = pytest.mark.anyio
DRAW = "/v1/images/generations"
BODY = {"prompt": "slow", "size": "64x64"}
FIRST, AGAIN = {"x-stainless-retry-count": "0"}, {"x-stainless-retry-count": "1"}


@dataclass
class Cell:
    """Two workers of one cell; no step with the prompt "slow" ends before ``gate`` is open."""

    pipelines: list[GatedPipeline]
    services: list[Lifecycle] = field(default_factory=list)
    clients: list[httpx.AsyncClient] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def drawn(self, prompt: str = "slow") -> int:
        """How often pictures of it were begun."""
        starts = [p for pipeline in self.pipelines for p in pipeline.prompts("start")]
        return sum(prompts.count(prompt) for prompts in starts)

    def finished(self, prompt: str = "slow") -> int:
        ends = [p for pipeline in self.pipelines for p in pipeline.prompts("finish")]
        return sum(prompts.count(prompt) for prompts in ends)

    async def left(self, **headers: str) -> str:
        """The id of a request whose client has gone while it was drawn."""
        request = Asked(self.clients[0], headers)
        await until(lambda: self.services[0].model.engine.state().running)
        return await request.leave()


class Asked:
    """A POST over a connection that its client may close."""

    def __init__(self, client: httpx.AsyncClient, headers: dict[str, str]) -> None:
        app: ASGIApp = client._transport.app  # type: ignore[attr-defined]
        told = {"content-type": "application/json", **headers}
        scope = {
            "type": "http",
            "method": "POST",
            "path": DRAW,
            "query_string": b"",
            "headers": [(k.lower().encode(), v.encode()) for k, v in told.items()],
        }
        self._left = asyncio.Event()
        self._body: bytes | None = json.dumps(BODY).encode()
        self._sent: list[Message] = []
        self._task: asyncio.Task[None] = asyncio.create_task(app(scope, self._receive, self._send))  # type: ignore[arg-type]

    async def leave(self) -> str:
        self._left.set()
        await asyncio.wait_for(self._task, 30)
        assert self._sent[0]["status"] == 499
        return str(dict(self._sent[0]["headers"])[b"x-request-id"].decode())

    async def _receive(self) -> Message:
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self._sent.append(message)


@pytest.fixture
def never() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
async def cell(settings: Settings, never: threading.Event) -> AsyncIterator[Cell]:
    async with workers(settings, settings.model_copy(update={"name": "w2"}), never) as two:
        yield two


@asynccontextmanager
async def workers(
    settings: Settings, second: Settings, never: threading.Event
) -> AsyncIterator[Cell]:
    two = Cell([GatedPipeline(), GatedPipeline()], gate=never)
    for pipeline in two.pipelines:
        pipeline.hooks["step"] = lambda prompts: "slow" not in prompts or two.gate.wait(30)
    async with (
        serving(migrated(settings), lambda _: two.pipelines[0]) as (one, first),
        serving(second, lambda _: two.pipelines[1]) as (other, client),
    ):
        two.services, two.clients = [one, other], [first, client]
        for service in two.services:
            await ready(service)
        yield two
        two.gate.set()


async def until(true: Any) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        await anyio.sleep(0.005)


async def again(cell: Cell, worker: int = 0, headers: Mapping[str, str] = AGAIN) -> httpx.Response:
    return await cell.clients[worker].post(DRAW, json=BODY, headers=headers)


@pytest.mark.parametrize("worker", [0, 1])
async def test_whoever_asks_again_gets_what_was_drawn_for_nobody(cell: Cell, worker: int) -> None:
    first = await cell.left(**FIRST)
    cell.gate.set()
    await until(cell.finished)
    answer = await again(cell, worker)
    assert answer.headers["X-Replay-Of"] == first != answer.headers["X-Request-ID"]
    assert answer.json()["data"][0]["seed"] == default_seed(first)
    assert cell.drawn() == 1
    third = await again(cell, worker)  # one answer for one request
    assert "X-Replay-Of" not in third.headers
    assert cell.drawn() == 2


@pytest.mark.parametrize("worker", [0, 1])
async def test_whoever_asks_again_waits_for_what_is_still_drawn(cell: Cell, worker: int) -> None:
    first = await cell.left(**FIRST)
    asked = asyncio.create_task(again(cell, worker))
    await asyncio.sleep(3 * retries._LOOK_S)
    assert not asked.done()
    cell.gate.set()
    answer = await asked
    assert (answer.status_code, answer.headers["X-Replay-Of"]) == (200, first)
    assert cell.drawn() == 1


async def test_whoever_asks_a_third_time_gets_it_too(cell: Cell) -> None:
    """A second request whose client leaves while it waits takes nothing."""
    first = await cell.left(**FIRST)
    second = Asked(cell.clients[1], AGAIN)
    await asyncio.sleep(2 * retries._LOOK_S)
    await second.leave()
    cell.gate.set()
    assert (await again(cell)).headers["X-Replay-Of"] == first
    assert cell.drawn() == 1


async def test_another_host_draws_it_again_and_gives_it_once(
    settings: Settings, never: threading.Event, home: Path
) -> None:
    """What is drawn for nobody is its host's: see docs/reliability.md."""
    folder = home / "b"
    folder.mkdir()
    places = {"var_dir": folder, "run_dir": folder / "run"}
    async with workers(settings, settings.model_copy(update=places), never) as hosts:
        first = await hosts.left(**FIRST)
        hosts.gate.set()
        answer = await again(hosts, 1)
        assert answer.status_code == 200
        assert "X-Replay-Of" not in answer.headers
        assert answer.json()["data"][0]["seed"] == default_seed(answer.headers["X-Request-ID"])
        await until(lambda: hosts.finished() == 2)
        there = hosts.services[0].components.undelivered
        await until(
            lambda: any((home / "undelivered").glob("*.answer"))
        )  # counted before it is kept
        [name] = [p.stem for p in (home / "undelivered").glob("*.answer")]
        kept = there.take(name)
        assert kept is not None
        assert kept.id == first


async def test_one_idempotency_key_gets_one_picture(cell: Cell) -> None:
    first = await cell.left(**{"Idempotency-Key": "k1"})
    cell.gate.set()
    await until(cell.finished)
    key = {"Idempotency-Key": "k1"}
    other = await cell.clients[0].post(DRAW, json={**BODY, "seed": 1}, headers=key)
    assert "X-Replay-Of" not in other.headers
    answer = await cell.clients[0].post(DRAW, json=BODY, headers=key)
    assert answer.headers["X-Replay-Of"] == first


@pytest.mark.parametrize(
    "headers",
    [{"X-Real-IP": "10.0.0.9"}, {"Idempotency-Key": "k1"}, {"x-stainless-retry-count": "0"}],
)
async def test_nobody_else_gets_it(cell: Cell, headers: dict[str, str]) -> None:
    await cell.left(**FIRST)
    cell.gate.set()
    await until(cell.finished)
    answer = await again(cell, headers={**AGAIN, **headers})
    assert (answer.status_code, "X-Replay-Of" in answer.headers) == (200, False)


async def test_nothing_is_drawn_for_a_client_that_does_not_come_back(cell: Cell) -> None:
    await cell.left()
    cell.gate.set()
    await cell.services[0].model.engine.drained()
    assert cell.finished() == 0


async def test_nothing_is_drawn_on_that_nobody_asks_for(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "UNASKED_S", 0.0)
    await cell.left(**FIRST)
    await until(lambda: not list((cell.services[0].settings.var_dir / "undelivered").iterdir()))
    cell.gate.set()
    await cell.services[0].model.engine.drained()
    assert cell.finished() == 0


async def test_who_waits_is_handed_on_where_the_worker_drains(cell: Cell) -> None:
    await cell.left(**FIRST)
    asked = asyncio.create_task(again(cell, 1))
    await asyncio.sleep(retries._LOOK_S)
    cell.services[1].drain()
    assert (await asked).status_code == 503  # for nginx, which asks the next one


async def test_what_is_drawn_for_nobody_is_written_down(cell: Cell) -> None:
    """Gallery and ledger are told after an answer, which here was long before."""
    first = await cell.left(**FIRST)
    cell.gate.set()
    assert (await again(cell)).headers["X-Replay-Of"] == first
    asked = f"/v1/images/{first}-0/details"
    deadline = time.monotonic() + 30
    while (await cell.clients[1].get(asked)).status_code != 200:
        assert time.monotonic() < deadline
        await anyio.sleep(0.02)
