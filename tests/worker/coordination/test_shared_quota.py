import asyncio
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.worker import databases
from tests.worker.storage.test_jobs import Store
from tests.worker.storage.test_races import at_once
from worker.coordination import shared_quota
from worker.coordination.lease_holder import this_process
from worker.coordination.shared_quota import SharedHold, SharedQuotas
from worker.errors import LimitReached
from worker.storage import database as databases_of_workers
from worker.storage import key_limits, outage
from worker.storage.database import Database, clock
from worker.storage.hosts import hosts
from worker.storage.key_limits import Asked
from worker.storage.keys import Key

pytestmark = pytest.mark.anyio

PATIENCE_S = 60.0
PROCESSES, EACH, MOST = 8, 125, 900
SLOTS = 3


def key(**limits: Any) -> Key:
    return Key("key_a", "ada", b"", "", **limits)


@asynccontextmanager
async def a_host(url: str, home: Path, name: str) -> AsyncIterator[SharedQuotas]:
    """As a worker of host ``name`` has them, with files of its own. However busy
    the machine is, it waits for its database."""
    (home / name / "run").mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_quota, "_FREED_S", PATIENCE_S)
        patch.setattr(databases_of_workers, "_PATIENCE_S", PATIENCE_S)
        database = Database(url, PATIENCE_S)
        try:
            run_dir, var_dir = home / name / "run", home / name
            quotas = SharedQuotas(run_dir, var_dir, database, this_process("w1", name))
            yield quotas
            await over(quotas)
        finally:
            database.close()


async def over(quotas: SharedQuotas) -> None:
    """Nothing is given back any more."""
    while quotas._tasks:
        await asyncio.wait(quotas._tasks)


def store_of(url: str) -> Store:
    return Store(url)


def in_database(url: str) -> int:
    store = Store(url)
    counted = store(key_limits.counted, "key_a")
    store.engine.dispose()
    return counted


def draw(url: str, home: Path, number: int) -> int:
    """Ask for two pictures as often as may be, under ids of this process; how many it drew."""

    async def one(quotas: SharedQuotas, other: SharedQuotas, k: int) -> int:
        asked, fate = (key(images_per_day=MOST), f"{number}-{k}"), random.Random(f"{number}-{k}")
        try:
            hold = await quotas.hold(*asked, time.time(), 2)
            if k % 5 == 0:  # it is sent again, while this one knows nothing of it
                lost, hold = hold, await other.hold(*asked, time.time(), 2)
                await lost.release()
        except LimitReached:
            return 0
        hold.drawn = fate.choice((0, 1, 2, 2))
        await hold.release()
        return hold.drawn

    async def work() -> int:
        async with a_host(url, home, f"a{number}") as one_host, a_host(url, home, "z") as another:
            drawn = 0
            for start in range(0, EACH, 25):
                batch = (one(one_host, another, k) for k in range(start, start + 25))
                drawn += sum(await asyncio.gather(*batch))
            return drawn

    return asyncio.run(work())


def test_a_thousand_requests_of_many_hosts_never_pass_the_day(shared_url: str, home: Path) -> None:
    drawn = sum(at_once(partial(draw, shared_url, home), PROCESSES))
    assert MOST / 2 < drawn <= MOST
    assert in_database(shared_url) == drawn
    assert not list(home.glob("*/quota/*")), "no host counted by itself"


def busy(url: str, home: Path, number: int) -> list[tuple[float, float]]:
    """When this process held one of the key's slots."""

    async def one(quotas: SharedQuotas, k: int) -> tuple[float, float]:
        while True:
            try:
                hold = await quotas.hold(key(concurrency=SLOTS), f"{number}-{k}", time.time(), 1)
                break
            except LimitReached:
                await asyncio.sleep(random.random() / 20)
        began = time.monotonic()
        await asyncio.sleep(0.005)
        over = time.monotonic()
        await hold.release()
        return began, over

    async def work() -> list[tuple[float, float]]:
        async with a_host(url, home, f"a{number}") as quotas:
            return await asyncio.gather(*(one(quotas, k) for k in range(8)))

    return asyncio.run(work())


def test_hosts_never_have_more_slots_than_there_are(shared_url: str, home: Path) -> None:
    held = [each for one in at_once(partial(busy, shared_url, home), PROCESSES) for each in one]
    assert len(held) == 8 * PROCESSES
    most = max(sum(b <= began < e for b, e in held) for began, _ in held)
    assert 1 <= most <= SLOTS


async def test_a_replay_on_another_host_counts_once(shared_url: str, home: Path) -> None:
    limits = key(images_per_day=5, concurrency=1)
    async with a_host(shared_url, home, "a") as a, a_host(shared_url, home, "b") as b:
        lost = await a.hold(limits, "r1", time.time(), 3)
        replay = await b.hold(limits, "r1", time.time(), 3)  # has the slot of the first, too
        replay.drawn = 3
        await lost.release()  # whoever was cut off comes back, and gives back nothing
        assert await a.today(limits) == 3
        with pytest.raises(LimitReached, match="1 requests drawn at a time"):
            await a.hold(limits, "r2", time.time(), 1)
        await replay.release()
        with pytest.raises(LimitReached, match="has drawn 3; this would be 3 more") as refused:
            await a.hold(limits, "r2", time.time(), 3)
        assert dict(refused.value.details or {})["drawn"] == 3
        await (await a.hold(limits, "r3", time.time(), 2)).release()


async def test_a_request_that_failed_gives_back_on_every_host(shared_url: str, home: Path) -> None:
    limits = key(images_per_day=2)
    async with a_host(shared_url, home, "a") as a, a_host(shared_url, home, "b") as b:
        failed = await a.hold(limits, "r1", time.time(), 2)
        with pytest.raises(LimitReached):
            await b.hold(limits, "r2", time.time(), 1)
        await failed.release()
        assert await b.today(limits) == 0
        again = await b.hold(limits, "r1", time.time(), 2)
        again.drawn = 2
        await again.release()
        assert await a.today(limits) == 2


async def test_a_host_whose_clock_is_wrong_counts_on_the_same_day(
    shared_url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits, right = key(images_per_day=3), time.time
    async with a_host(shared_url, home, "a") as a, a_host(shared_url, home, "b") as b:
        held = await a.hold(limits, "r1", right(), 2)
        monkeypatch.setattr(time, "time", lambda: right() + 2 * 86_400)
        with pytest.raises(LimitReached, match="has drawn 2"):
            await b.hold(limits, "r2", time.time(), 2)
        held.drawn = 2
        await held.release()
        assert await b.today(limits) == 2


async def test_one_request_over_the_day_counts_nothing(shared_url: str, home: Path) -> None:
    async with a_host(shared_url, home, "a") as a:
        with pytest.raises(LimitReached, match="has drawn 0; this would be 3 more"):
            await a.hold(key(images_per_day=2), "r1", time.time(), 3)
        assert await a.today(key()) == 0


HOLDER = """
import asyncio, sys, time
from pathlib import Path
from worker.coordination.lease_holder import this_process
from worker.coordination.shared_quota import SharedQuotas
from worker.storage.database import Database
from worker.storage.keys import Key
async def main():
    home, key = Path(sys.argv[1]), Key("key_a", "ada", b"", "", concurrency=1, images_per_day=5)
    quotas = SharedQuotas(home, home, Database(sys.argv[2]), this_process("w1", "a"))
    await quotas.hold(key, "r1", time.time(), 3)
    print("held", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_a_killed_worker_holds_no_slot(shared_url: str, home: Path) -> None:
    limits = key(concurrency=1, images_per_day=5)
    command = [sys.executable, "-c", HOLDER, str(home), shared_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:  # noqa: ASYNC220
        assert holder.stdout is not None
        assert await asyncio.to_thread(holder.stdout.readline) == "held\n"
        async with a_host(shared_url, home, "a") as mine:
            with pytest.raises(LimitReached):
                await mine.hold(limits, "r2", time.time(), 1)
            holder.kill()
            holder.wait()
            other = await mine.hold(limits, "r2", time.time(), 1)
            other.drawn = 1
            await other.release()
            replay = await mine.hold(limits, "r1", time.time() - 5, 3)
            replay.drawn = 3
            await replay.release()
            assert await mine.today(limits) == 4


def a_row(name: str, at: float, lost_at: float | None) -> dict[str, Any]:
    """Of table ``hosts``."""
    texts = dict.fromkeys(("address", "version", "models", "state", "facts", "wanted_reason"), "")
    numbers = dict.fromkeys(("workers", "ready", "queued", "running", "wait_s", "skew_s"), 0)
    known: dict[str, Any] = {"id": name, "role": "host", "wanted": "in", "joined_at": 0.0}
    known |= {"since": 0.0, "wanted_at": 0.0}
    return {**texts, **numbers, **known, "at": at, "lost_at": lost_at}


@pytest.mark.parametrize(("silent_s", "free"), [(11, True), (9, False)])
async def test_the_slots_of_a_lost_host_are_taken_over(
    shared_url: str, home: Path, silent_s: float, free: bool
) -> None:
    store, asked = store_of(shared_url), Asked("key_a", "r1", "1" * 32, 1)

    def lose(connection: sa.Connection) -> None:
        now = clock(connection)
        key_limits.take_slot(connection, asked, "boot.9/7/1.0/w1@b", "b", 1, now)
        connection.execute(hosts.insert().values(a_row("b", now - silent_s, now - silent_s)))

    store(lose)
    store.engine.dispose()
    async with a_host(shared_url, home, "a") as a:
        if free:
            await (await a.hold(key(concurrency=1), "r2", time.time(), 1)).release()
        else:
            with pytest.raises(LimitReached):
                await a.hold(key(concurrency=1), "r2", time.time(), 1)


async def test_what_is_held_is_renewed_and_the_rest_let_go(shared_url: str, home: Path) -> None:
    store = store_of(shared_url)
    async with a_host(shared_url, home, "a") as a, a_host(shared_url, home, "b") as b:
        held = await a.hold(key(concurrency=2), "r1", time.time(), 1)
        assert isinstance(held, SharedHold)
        forgotten = await a.hold(key(concurrency=2), "r2", time.time(), 1)
        a._attempts.remove(forgotten.asked.attempt)  # type: ignore[attr-defined]
        store(lambda c: c.execute(key_limits.slots.update().values(ends_at=0.0)))
        await a._database.run(a._renew)
        rows = store(lambda c: c.execute(sa.select(key_limits.slots)).all())
        assert [(row.request_id, row.ends_at > time.time()) for row in rows] == [("r1", True)]
        await (await b.hold(key(concurrency=2), "r3", time.time(), 1)).release()
        with pytest.raises(LimitReached):
            await b.hold(key(concurrency=1), "r3", time.time(), 1)
    store.engine.dispose()


async def test_whoever_leaves_while_it_is_counted_gets_it_back(
    shared_url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits, counting, go = key(images_per_day=3, concurrency=1), asyncio.Event(), asyncio.Event()
    async with a_host(shared_url, home, "a") as a:
        count = a._database.count

        async def slow(*args: Any, **more: Any) -> Any:
            counting.set()
            await go.wait()
            return await count(*args, **more)

        monkeypatch.setattr(a._database, "count", slow)
        asked = asyncio.ensure_future(a.hold(limits, "r1", time.time(), 3))
        await counting.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        go.set()
        await over(a)
        assert await a.today(limits) == 0
        await a.hold(limits, "r2", time.time(), 3)


async def test_without_the_database_a_host_counts_by_itself(
    shared_url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "REST_S", 0.0)
    limits = key(images_per_day=2, concurrency=1)
    async with a_host(shared_url, home, "a") as a:
        before = await a.hold(limits, "r0", time.time(), 1)
        before.drawn = 1
        with databases.away(shared_url):
            await before.release()  # the slot stays until it is renewed
            held = await a.hold(limits, "r1", time.time(), 2)
            with pytest.raises(LimitReached, match="at a time"):
                await a.hold(limits, "r2", time.time(), 1)
            held.drawn = 2
            await held.release()
            with pytest.raises(LimitReached, match="has drawn 2"):
                await a.hold(limits, "r2", time.time(), 1)
            assert await a.today(limits) == 2
        await over(a)
        await a._ask(a._renew)
        back = await a.hold(limits, "r3", time.time(), 1)
        back.drawn = 1
        await back.release()
        assert await a.today(limits) == 2
    assert in_database(shared_url) == 2


async def test_keys_without_limits_ask_nothing(shared_url: str, home: Path) -> None:
    async with a_host(shared_url, home, "a") as a:
        with databases.locked(shared_url):
            for who in (None, key(max_pixels=1)):
                await (await a.hold(who, "r", time.time(), 9)).release()
        assert a._database.failures == 0
