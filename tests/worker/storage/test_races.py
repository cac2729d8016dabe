"""Processes that do the same at the same moment, as the workers of several hosts do."""

import itertools
import multiprocessing
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import sqlalchemy as sa

from tests.worker.storage.test_jobs import SHARE, Store
from worker.errors import LimitReached
from worker.storage import jobs, keys, leases, usage
from worker.storage.database import create_engine, sqlite_url
from worker.storage.jobs import Job
from worker.storage.migrations import migrate
from worker.storage.usage import REQUEST, Entry, Outcome

T = TypeVar("T")
PROCESSES = 6
ITEMS = 600
PICTURE = Entry("r", 0, "image", 1_800_000_000.0, "k1", "tiny", 512, 256, 1.0, 0.5)
MAY_HAVE = 5
SECRET = b"s" * 32
PATIENCE_S = 60.0  # SQLite lets writers wait in no order


def at_once(work: Callable[[int], T], processes: int = PROCESSES) -> list[T]:
    """What each of some processes returns for its number."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(processes, context) as pool:
        return list(pool.map(work, range(processes)))


def the_job(store: Store) -> Job:
    [job] = store(jobs.page, None, (), 1, None)
    return job


def draw(url: str, worker: int) -> list[int]:
    """Take and finish items until there is none left; the numbers of those that counted."""
    store, names = Store(url, PATIENCE_S), (f"w{worker}-{k}" for k in itertools.count())
    done: list[int] = []

    def finish(connection: sa.Connection, taken: list[leases.Leased]) -> list[int]:
        mine = [i.number for i in taken if leases.finish(connection, i, f"img_{i.number}", 300.0)]
        usage.apply(connection, [replace(PICTURE, image_index=number) for number in mine])
        return mine

    while the_job(store).counts["waiting"]:
        taken = store(leases.take, f"w{worker}", lambda: next(names), lambda _: 7, 200.0)
        if worker == 0 and len(taken) > 1:  # somebody else draws it
            store(leases.release, [taken.pop().lease])
        store(leases.renew, [item.lease for item in taken], 200.0)
        done += store(finish, taken)
    store.engine.dispose()
    return done


def test_no_item_is_drawn_twice_and_none_is_lost(url: str) -> None:
    store = Store(url, PATIENCE_S)
    store.create(prompts=("a",) * ITEMS)
    numbers = Counter(itertools.chain(*at_once(partial(draw, url))))
    assert numbers == Counter(range(1, ITEMS + 1))
    done = the_job(store)
    assert (done.state, done.counts["done"]) == ("completed", ITEMS)
    [row] = store(usage.report, "key")
    assert row["images"] == ITEMS
    store.engine.dispose()


def count(url: str, worker: int) -> None:
    """Enter the same requests as all others, in another order and with another outcome."""
    outcome: Outcome = "done" if worker % 2 else "failed"
    pictures = [replace(PICTURE, request_id=f"r{k}") for k in range(40)]
    ends = [replace(p, image_index=REQUEST, outcome=outcome) for p in pictures]
    batch = [*pictures, *ends]
    random.Random(worker).shuffle(batch)
    store = Store(url, PATIENCE_S)
    for k in range(0, len(batch), 2):
        store(usage.apply, batch[k : k + 2])
    store.engine.dispose()


def test_what_many_count_at_once_counts_once(url: str) -> None:
    at_once(partial(count, url))
    store = Store(url, PATIENCE_S)
    [row] = store(usage.report, "key")
    assert (row["requests"], row["images"], row["failures"]) == (40, 40, 0)
    store.engine.dispose()


def make(url: str, worker: int) -> int:
    """Make jobs, a replay of each among them; how many there was room for."""
    store, made = Store(url, PATIENCE_S), 0
    share = replace(SHARE, open_jobs=MAY_HAVE)
    for k in range(4):
        try:
            store.create(f"{worker}-{k}", share=share)
            store.create("the same everywhere", share=share)
        except LimitReached:
            continue
        made += 1
    store.engine.dispose()
    return made


def test_nobody_gets_more_jobs_than_may_be(url: str) -> None:
    at_once(partial(make, url))
    store = Store(url, PATIENCE_S)
    assert len(store(jobs.page, None, (), 100, None)) == MAY_HAVE
    store.engine.dispose()


def migrated(url: str, _: int) -> None:
    migrate(url)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_all_may_migrate_at_once(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    new: AbstractContextManager[str] = nullcontext(sqlite_url(tmp_path / "new.db"))
    if kind == "postgresql":
        new = request.getfixturevalue("postgres").database("zimage_new")
    with new as url:
        at_once(partial(migrated, url))
        engine = create_engine(url, 1.0)
        with engine.connect() as connection:
            assert connection.scalar(sa.select(sa.func.count()).select_from(jobs.jobs)) == 0
        engine.dispose()


def test_a_key_is_not_read_for_a_hold_while_it_is_changed(url: str) -> None:
    """Else it would be held by its old limit, with nobody left to end that."""
    store = Store(url, PATIENCE_S)
    key, _ = keys.new_key(SECRET, "k", images_per_day=1)
    store(keys.insert, key, SECRET)
    with ThreadPoolExecutor() as pool:
        with store.engine.begin() as connection:
            keys.change(connection, key.id, images_per_day=3)
            found = pool.submit(store, partial(keys.find, lock=True), key.id)
            with pytest.raises(TimeoutError):
                found.result(0.3)
        changed = found.result(PATIENCE_S)
    assert changed is not None
    assert changed.images_per_day == 3
    store.engine.dispose()
