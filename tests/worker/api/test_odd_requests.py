"""schemathesis on a worker that asks for keys: no 5xx, no undocumented answer, none without one."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.odd_requests import try_all
from tests.worker.conftest import load_synthetic, migrated, settings_in
from worker.app import create_app
from worker.settings import Settings
from worker.storage import keys
from worker.storage.database import create_engine, sqlite_url
from worker.storage.secret import shared_secret

pytestmark = [pytest.mark.timeout(900), pytest.mark.long]


class Counted:
    """``app``, and how often it said what."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.statuses: Counter[int] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.statuses[message["status"]] += 1
            await send(message)

        await self._app(scope, receive, counted)


@contextmanager
def listening(settings: Settings) -> Iterator[tuple[str, Counter[int]]]:
    """A worker in a thread, at a port: its address, and what it answers."""
    made: list[Counted] = []

    def make() -> ASGIApp:  # within the server's loop
        made.append(Counted(create_app(settings, load_synthetic)))
        return made[0]

    config = uvicorn.Config(make, factory=True, port=0, log_level="critical", ws="none")
    server = uvicorn.Server(config)
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive(), "the worker did not start"
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", made[0].statuses
    finally:
        server.should_exit = True
        thread.join(30)


def new_key(home: Path, role: str) -> str:
    """The token of a key in the database of ``home``."""
    secret = shared_secret(home / "key-secret")
    key, token = keys.new_key(secret, "tester", role=role)
    engine = create_engine(sqlite_url(home / "zimage.db"), 5.0)
    with engine.begin() as connection:
        keys.insert(connection, key, secret)
    engine.dispose()
    return token


@pytest.mark.parametrize("role", ["user", "ops"])
def test_nothing_that_a_key_sends_makes_a_5xx_or_an_undocumented_answer(
    home: Path, tmp_path: Path, role: str
) -> None:
    limits = {"max_pixels": 16_384, "max_images": 2, "max_steps": 4}
    # Wrong keys are refused elsewhere; here their refusals would stand before all others.
    keyed = {"auth": "keys", "wrong_keys_per_minute": 100_000}
    settings = migrated(settings_in(home, model="synthetic:step_ms=0", **limits, **keyed))
    headers = {"Authorization": f"Bearer {new_key(home, role)}"}
    with listening(settings) as (url, answers):
        draw(url, headers)
        assert httpx.get(f"{url}/openapi.json", headers=headers).json()["security"]
        try_all(url, headers, tmp_path)
        assert httpx.get(f"{url}/readyz").status_code == 200
    assert sum(count for status, count in answers.items() if status < 300) > 100, answers


def draw(url: str, headers: dict[str, str]) -> None:
    """Three pictures for the gallery, from when the worker is ready."""
    deadline = time.monotonic() + 30
    while httpx.get(f"{url}/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    body = {"prompt": "a fox", "size": "64x64"}
    for _ in range(3):
        done = httpx.post(f"{url}/v1/images/generations", json=body, headers=headers, timeout=60)
        assert done.status_code == 200
