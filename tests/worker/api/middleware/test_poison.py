"""What is remembered of requests while they are handled, in a worker of this process."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.worker.conftest import ready, serving, settings_in
from worker import app
from worker.coordination.heartbeat import digest
from worker.coordination.inflight import read_in_flight
from worker.settings import Settings

pytestmark = pytest.mark.anyio
DRAW = "/v1/images/generations"
SLOW = "/v1/slow"


class Slow:
    """A route whose handler waits, and how many of it were at work at a time."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.inside = self.most = 0

    async def handle(self, request: Request) -> Response:
        await request.body()
        self.inside += 1
        self.most = max(self.most, self.inside)
        await self.go.wait()
        self.inside -= 1
        return PlainTextResponse("done")


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    slow = Slow()
    monkeypatch.setattr(app, "ROUTES", [*app.ROUTES, Route(SLOW, slow.handle, methods=["POST"])])
    return slow


async def until(happens: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not happens():
        assert time.monotonic() < deadline
        await anyio.sleep(0.005)


async def test_a_post_stands_in_the_table_until_its_answer_begins(
    settings: Settings, slow: Slow
) -> None:
    async with serving(settings) as (service, client):
        await ready(service)
        post = asyncio.create_task(client.post(SLOW, content=b"a", headers=ID))
        await until(lambda: slow.inside)
        (line,) = read_in_flight(settings.heartbeat)
        assert line.request == digest(ID["x-request-id"])
        assert line.fingerprint != line.request, "it is known by what it asks for"
        slow.go.set()
        assert (await post).status_code == 200
        assert read_in_flight(settings.heartbeat) == []


ID = {"x-request-id": "a" * 32}


async def test_a_drawing_that_waits_or_is_drawn_is_not_being_handled(home: Path) -> None:
    settings = settings_in(home, model="synthetic:step_ms=100")
    async with serving(settings) as (service, client):
        await ready(service)
        drawing = asyncio.create_task(client.post(DRAW, json={"prompt": "a"}, headers=ID))
        await until(lambda: (state := service.engine_state()) and state.running)
        assert read_in_flight(settings.heartbeat) == []
        assert (await drawing).status_code == 200


async def test_a_drawing_that_is_encoded_is_being_handled(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    async with serving(settings) as (service, client):
        await ready(service)
        encoded = service.components.encoders.encoded

        def look(*how: object) -> object:
            seen.append(len(read_in_flight(settings.heartbeat)))
            return encoded(*how)  # type: ignore[arg-type]

        monkeypatch.setattr(service.components.encoders, "encoded", look)
        assert (await client.post(DRAW, json={"prompt": "a", "n": 1})).status_code == 200
    assert seen == [1]


async def test_struck_requests_are_handled_one_at_a_time(
    settings: Settings, slow: Slow, home: Path
) -> None:
    async with serving(settings) as (service, client):
        await ready(service)
        names = await _fingerprints(settings, client, slow)
        for name in names:
            folder = home / "strikes" / name.hex()
            folder.mkdir(parents=True)
            (folder / "w9-1").touch()
        slow.go.clear()
        await anyio.sleep(0.02)  # the folder is not looked at for every request
        slow.most = 0
        posts = [asyncio.create_task(_post(client, text)) for text in (b"a", b"b")]
        innocent = asyncio.create_task(_post(client, b"c"))
        await until(lambda: slow.inside == 2)
        slow.go.set()
        for each in (*posts, innocent):
            assert (await each).status_code == 200
    assert slow.most == 2, "one of the struck, and whoever is not struck beside it"


async def test_a_refused_request_is_told_so_before_it_is_handled(
    settings: Settings, slow: Slow, home: Path
) -> None:
    async with serving(settings) as (service, client):
        await ready(service)
        name, _ = await _fingerprints(settings, client, slow)
        folder = home / "strikes" / name.hex()
        folder.mkdir(parents=True)
        for death in ("w8-1-alone", "w9-2-alone"):
            (folder / death).touch()
        await anyio.sleep(0.02)
        slow.most = 0
        refused = await _post(client, b"a")
        assert (refused.status_code, slow.most) == (422, 0)
        assert refused.json()["error"]["code"] == "request_refused"
        assert (await _post(client, b"b")).status_code == 200


async def _post(client: httpx.AsyncClient, content: bytes) -> httpx.Response:
    return await client.post(SLOW, content=content)


async def _fingerprints(settings: Settings, client: httpx.AsyncClient, slow: Slow) -> list[bytes]:
    """What the posts ``a`` and ``b`` are known by."""
    found = []
    for content in (b"a", b"b"):
        slow.go.clear()
        post = asyncio.create_task(_post(client, content))
        await until(lambda: slow.inside == 1)
        found.append(read_in_flight(settings.heartbeat)[0].fingerprint)
        slow.go.set()
        await post
    return found
