import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.worker import databases
from tests.worker.coordination.test_poison_requests import dead, write_beat
from tests.worker.processes import WorkerProcess, wait_until, worker
from tests.worker.storage.test_jobs import Store
from worker.coordination import shared_poison
from worker.coordination.heartbeat import Phase, digest
from worker.coordination.poison_requests import PoisonRequests
from worker.coordination.shared_poison import SharedPoison
from worker.errors import Refused
from worker.file_lock import try_lock
from worker.storage import strikes
from worker.storage.database import Database

pytestmark = pytest.mark.anyio
__all__ = ["dead"]
TTL_S = 600.0
PATIENCE_S = 60.0
REQUEST = "f" * 32


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, too, the database's answer is waited for."""
    monkeypatch.setattr(shared_poison, "_ASKED_S", PATIENCE_S)


@asynccontextmanager
async def a_host(url: str, home: Path, name: str) -> AsyncIterator[SharedPoison]:
    """As a worker of host ``name`` sees what is known."""
    folder = home / name
    (folder / "run").mkdir(parents=True, exist_ok=True)
    database = Database(url, PATIENCE_S)
    places = folder, folder / "run", folder / "pool"
    try:
        yield SharedPoison(*places, "w2", TTL_S, host=name, database=database)
    finally:
        database.close()


def struck_on(poison: SharedPoison, home: Path, dead: int, *, workers: int = 2) -> None:
    """So many workers of the host died of request ``r``, each while it drew nothing else."""
    for k in range(workers):
        write_beat(home, dead, Phase.STEP, name=f"w{k + 5}", alone=True)
    assert poison.arrive("r", "f").strikes == workers


async def test_an_old_request_is_asked_for_and_refused_on_another_host(
    shared_url: str, home: Path, dead: int
) -> None:
    async with a_host(shared_url, home, "a") as a, a_host(shared_url, home, "b") as b:
        assert b.surely_clean("r", time.time())
        assert not b.surely_clean("r", time.time() - 2), "it has been somewhere else"
        struck_on(a, home / "a", dead)
        await a._exchange()
        await b.ask_others("f")
        record = b.arrive("r", "f")
        assert (record.strikes, record.refused) == (2, True)
        assert isinstance(record.refusal("512x512 in 8 steps"), Refused)
        assert TTL_S - 60 < record.forgotten_in_s <= TTL_S
        await b.ask_others("g")
        assert b.arrive("another", "g").strikes == 0


async def test_new_requests_hear_of_it_soon_and_nobody_tells_it_back(
    shared_url: str, home: Path, dead: int
) -> None:
    async with a_host(shared_url, home, "a") as a, a_host(shared_url, home, "b") as b:
        struck_on(a, home / "a", dead, workers=1)
        await a._exchange()
        await b._exchange()
        assert not b.surely_clean("new", time.time())
        assert b.arrive("new", "f").strikes == 1
        await b._exchange()
        await a._exchange()
        assert a.record("f").strikes == 1
        store = Store(shared_url)
        assert [row.host for row in store(strikes.of_others, "", 0.0)] == ["a"]
        store.engine.dispose()


def test_one_worker_of_a_host_tells(home: Path) -> None:
    with (home / "lock").open("a") as one, (home / "lock").open("a") as two:
        assert try_lock(one)
        assert not try_lock(two)
        one.close()  # as when its process ends
        assert try_lock(two)


async def test_what_is_forgotten_is_not_heard_of(shared_url: str, home: Path, dead: int) -> None:
    async with a_host(shared_url, home, "a") as a, a_host(shared_url, home, "b") as b:
        struck_on(a, home / "a", dead)
        await a._exchange()
        store = Store(shared_url)
        old = strikes.strikes.update().values(at=strikes.strikes.c.at - TTL_S)
        store(lambda c: c.execute(old))
        await b.ask_others("f")
        await b._exchange()
        assert b.record("f").strikes == 0
        store.engine.dispose()


async def test_without_the_database_a_host_knows_its_own(
    shared_url: str, home: Path, dead: int
) -> None:
    async with a_host(shared_url, home, "a") as a:
        struck_on(a, home / "a", dead)
        with databases.away(shared_url):
            await a.ask_others("f")
            assert a.record("f").refused
            await a._try_to_exchange()
        store = Store(shared_url)
        assert store(strikes.of_others, "b", 0.0) == []
        await a._try_to_exchange()
        assert len(store(strikes.of_others, "b", 0.0)) == 2
        store.engine.dispose()


@contextmanager
def workers_of(home: Path, host: str, url: str, *names: str) -> Iterator[list[WorkerProcess]]:
    """Ready workers of a host of its own."""
    folder = home / host
    folder.mkdir()
    started = [WorkerProcess(folder, name, database_url=url, host=host) for name in names]
    try:
        yield [each.wait_ready() for each in started]
    finally:
        for each in started:
            each.close()


def test_a_request_that_kills_workers_on_one_host_is_not_drawn_on_another(
    shared_url: str, home: Path
) -> None:
    began = str(time.time() - 2)  # as a front says of a request that it sends on

    def draw(to: WorkerProcess) -> httpx.Response:
        headers = {"X-Request-ID": REQUEST, "X-Request-Start": began}
        body = {"prompt": "fault:exit"}
        return to.client.post("/v1/images/generations", json=body, headers=headers)

    with (
        workers_of(home, "a", shared_url, "w1", "w2", "w3") as (*victims, _),
        workers_of(home, "b", shared_url, "w1") as (other,),
    ):
        for victim in victims:
            with pytest.raises(httpx.TransportError):
                draw(victim)
            victim.wait()
        store, folder = Store(shared_url), home / "a"
        with worker(folder, "w2", database_url=shared_url, host="a") as successor:
            successor.wait_ready()
            wait_until(lambda: len(store(strikes.of_others, "b", 0.0)) >= 2)
        # It may be told that by the database only later than it waits for that.
        wait_until(lambda: len(list((home / "b").glob("strikes/*/a.*"))) >= 2)
        answer = draw(other)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "request_refused")
        assert other.process.poll() is None
        store.engine.dispose()


def test_a_host_of_its_own_is_as_before(home: Path) -> None:
    (home / "run").mkdir()
    alone = PoisonRequests(home, home / "run", home / "pool", "w1", TTL_S)
    assert alone.surely_clean("r", time.time() - 60)
    assert digest("f").hex() not in {path.name for path in home.glob("strikes/*")}
