"""Jobs of hosts that share a database."""

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.worker import databases
from tests.worker.conftest import ready, serving
from tests.worker.coordination.test_shared_quota import a_row
from tests.worker.jobs.conftest import NEVER_S, ToldStore, eventually, over, settings_of
from worker.coordination import host_drain, shared_progress
from worker.coordination.shared_progress import SharedProgressReader, SharedProgressWriter
from worker.errors import StoreAway
from worker.settings import Settings
from worker.storage import leases, lost_hosts
from worker.storage.database import Database, clock
from worker.storage.hosts import hosts
from worker.storage.job_steps import job_steps
from worker.storage.leases import Leased

pytestmark = pytest.mark.anyio
NAMES = (f"{k:032x}" for k in itertools.count())
ELSEWHERE = "another.boot/7/1.0/w1@b"


@pytest.fixture
def store(shared_url: str, home: Path) -> Any:
    made = ToldStore(shared_url, home)
    yield made
    made.engine.dispose()


def take(store: ToldStore) -> Leased:
    return store(leases.take, ELSEWHERE, lambda: next(NAMES), lambda _: 1, time.time())[0]


async def test_leases_of_a_lost_host_end_at_once(
    store: ToldStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_S", NEVER_S)
    job = store.create()
    take(store)

    def lose(connection: sa.Connection) -> None:
        at = clock(connection) - lost_hosts.LOST_S - 1
        connection.execute(hosts.insert().values(a_row("b", at, at)))

    async with serving(settings_of(home, host="a")) as (service, _):
        await ready(service)
        await eventually(lambda: store.job(job.id).counts["done"] == 2)
        assert store.job(job.id).counts["running"] == 1
        store(lose)
        done = await over(store, job)
    assert done.counts["done"] == 3


async def test_a_host_that_was_cut_off_writes_nothing_and_deletes_its_picture(
    store: ToldStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pictures() -> list[Path]:
        return list((home / "images").glob("*/*.png"))

    settings = settings_of(home, host="a", model="synthetic:step_ms=50")
    async with serving(settings) as (service, _):
        await ready(service)
        job = store.create(prompts=("a",), steps=10)
        await eventually(lambda: service.model.engine.state().running == 1)
        database, cut = service.components.database, True
        call = database._call

        async def cut_off(*asked: Any) -> Any:
            if cut:
                raise StoreAway("cut off")
            return await call(*asked)

        monkeypatch.setattr(database, "_call", cut_off)
        await eventually(lambda: len(pictures()) == 1)
        [mine] = store(leases.snapshot, time.time()).holders
        store(leases.end, [mine], time.time())
        item = take(store)
        cut = False
        await eventually(lambda: not pictures())
        assert store(leases.finish, item, "img_of_b", time.time())
        assert [i.image_id for i in store.items(job.id)] == ["img_of_b"]


async def test_a_client_of_one_host_follows_what_another_draws(
    store: ToldStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that many are told of, however busy the machine is.
    monkeypatch.setattr(shared_progress, "_TELL_S", 0.1)
    monkeypatch.setattr(shared_progress, "_READ_S", 0.1)

    def host(name: str) -> Settings:
        folder = home / name
        folder.mkdir()
        model = "synthetic:step_ms=100"
        return settings_of(home, host=name, run_dir=folder / "run", var_dir=folder, model=model)

    async with serving(host("a")) as (a, _), serving(host("b")) as (b, client):
        await ready(a)
        await ready(b)
        host_drain.flag(b.settings.run_dir).touch()  # it draws nothing of jobs
        job = store.create(prompts=("a",), steps=40, owner="everyone")
        told = await client.get(f"/v1/jobs/{job.id}/events")
        lines = [line for line in told.text.splitlines() if line.startswith("data: ")]
        events = [json.loads(line.removeprefix("data: ")) for line in lines]
        steps = [event["step"] for event in events if event["type"] == "job.step"]
        assert len(steps) >= 2
        assert steps == sorted(steps)
        assert events[-1]["job"]["state"] == "completed"
        await eventually(lambda: not store(lambda c: c.execute(sa.select(job_steps)).all()))


async def test_without_the_database_a_host_tells_of_its_own_steps(
    shared_url: str, home: Path
) -> None:
    (home / "run").mkdir()
    database = Database(shared_url)
    mine = SharedProgressWriter(home / "run" / "w1.steps", database, "me@a")
    here = SharedProgressReader(home / "run", database, "me@a")
    elsewhere = SharedProgressReader(home / "none", database, "other@b")
    mine.set("lease", 3, 8)
    while mine._writing and not mine._writing.done():
        await mine._writing
    await mine.tell()
    assert await here.read() == await elsewhere.read() == {"lease": (3, 8)}
    here._elsewhere_at = elsewhere._elsewhere_at = 0.0
    with databases.away(shared_url):
        assert await here.read() == {"lease": (3, 8)}
        assert await elsewhere.read() == {}
    mine.drop("lease")
    await mine.tell()
    elsewhere._elsewhere_at = 0.0
    assert await elsewhere.read() == {}
    database.close()


async def test_ends_are_predicted_with_the_workers_of_all_hosts(
    store: ToldStore, home: Path
) -> None:
    def left_s(ends: dict[str, float]) -> float:
        [end] = ends.values()
        return end - time.time()

    others = {"ready": 9}
    async with serving(settings_of(home, model="synthetic:step_ms=100", host="a")) as (service, _):
        await ready(service)
        store.create(prompts=("a",) * 100, steps=50)
        eta = service.components.job_eta
        alone_s = left_s(await eta.finish_times())
        store(lambda c: c.execute(hosts.insert().values(a_row("b", clock(c), None) | others)))
        eta._known_at = 0.0
        together_s = left_s(await eta.finish_times())
    assert together_s < alone_s / 5
