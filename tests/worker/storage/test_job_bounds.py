"""What the jobs of one owner may cost all others: rows, bytes, and the work of choosing."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.worker.storage.test_jobs import SHARE, WISH, Store
from worker.errors import LimitReached
from worker.storage import job_changes, job_turns, jobs, keys, leases, migrations
from worker.storage.database import give_space_back, sqlite_url
from worker.storage.jobs import Job

PROMPT = "红" * 4000


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = Store(url)
    yield made
    made.engine.dispose()


def steps_of(store: Store, work: Callable[..., Any], *args: Any) -> int:
    """Instructions of SQLite's machine that ``work`` takes: rows read, not time."""
    steps = [0]

    def count() -> None:
        steps[0] += 1

    with store.engine.connect() as connection, connection.begin():
        raw = connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        raw.set_progress_handler(count, 1)
        work(connection, *args)
        raw.set_progress_handler(None, 0)
    return steps[0]


def many_jobs(store: Store, count: int, owner: str) -> None:
    """``count`` jobs of one picture, oldest first."""

    def work(connection: sa.Connection) -> None:
        for k in range(count):
            wish = replace(WISH, prompts=("a",))
            jobs.create(connection, wish, owner, owner, f"{owner}-{k}", float(k), SHARE)

    store(work)


@pytest.mark.sqlite
def test_choosing_costs_the_same_however_many_jobs_somebody_has(store: Store) -> None:
    share = replace(SHARE, open_jobs=10_000)
    store.create("quiet", owner="quiet", share=share)
    many_jobs(store, 10, "busy")
    few = steps_of(store, leases.snapshot, 200.0)
    many_jobs(store, 300, "busier")
    many_jobs(store, 300, "busiest")
    many = steps_of(store, leases.snapshot, 200.0)
    assert many < 3 * few  # four turns in place of two
    assert many < 3000


@pytest.mark.sqlite
def test_held_jobs_cost_nothing(store: Store) -> None:
    gone, _ = keys.new_key(b"secret", "gone", disabled=True)
    store(keys.insert, gone, b"secret")
    many_jobs(store, 300, gone.id)
    many_jobs(store, 300, "limited")
    store(job_turns.hold, "limited", 300.0)
    other = store.create("other", owner="other")
    offer = store(leases.snapshot, 200.0).offer
    assert offer is not None
    assert offer.job_id == other.id
    assert steps_of(store, leases.snapshot, 200.0) < 3000


def test_streams_of_a_job_hear_that_its_key_is_held(store: Store) -> None:
    job = store.create()
    store(job_turns.hold, job.owner, time.time() + 60)
    held = store.job(job.id)
    assert (held.held, held.revision > job.revision) == ("limit", True)
    store(job_turns.let_draw, job.owner)
    assert store.job(job.id).held == ""


@pytest.mark.sqlite
def test_ends_are_predicted_for_the_first_jobs_of_each_turn(store: Store) -> None:
    many_jobs(store, 300, "busy")
    other = store.create("other", owner="other")
    found = store(job_turns.foreseen)
    assert [job.created_at for job in found if job.owner == "busy"] == [*range(job_turns.FORESEEN)]
    assert other.id in {job.id for job in found}
    assert steps_of(store, job_turns.foreseen) < 10_000


@pytest.mark.sqlite
def test_what_is_asked_all_the_time_reads_by_index(store: Store) -> None:
    plans: list[str] = []

    def explained(connection: sa.Connection) -> None:
        def before(conn: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            if statement.lstrip().startswith(("SELECT", "WITH")):
                raw = conn.connection.driver_connection
                rows = raw.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
                plans.extend(row[3] for row in rows)

        sa.event.listen(connection, "before_cursor_execute", before)
        leases.snapshot(connection, 200.0)
        leases.take(connection, "w1", lambda: "lease", lambda _: 1, 200.0)
        job_turns.foreseen(connection)
        jobs.page(connection, "k1", (), 20, None)
        jobs.page(connection, None, (), 20, None)
        jobs.create(connection, WISH, "k1", "k1", "two", 1.0, SHARE)
        job_changes.forget_finished(connection, 1.0)

    store.create()
    store(explained)
    scans = [plan for plan in plans if plan.startswith(("SCAN jobs", "SCAN job_items"))]
    assert [plan for plan in scans if "USING" not in plan] == []
    assert [plan for plan in plans if "AUTOMATIC" in plan] == []


@pytest.mark.sqlite
def test_pictures_of_one_prompt_share_it(store: Store, home: Path) -> None:
    job = store.create(prompts=(PROMPT,) * 5000 + ("b",) * 5000)
    store.engine.dispose()  # the last connection moves the log into the file
    assert (home / "zimage.db").stat().st_size < 8 << 20
    assert [item.prompt for item in store.items(job.id)[:2]] == [PROMPT, PROMPT]
    [item] = store(leases.take, "w1", lambda: "lease", lambda _: 1, 200.0)
    assert item.prompt == PROMPT


@pytest.mark.sqlite
def test_bytes_that_are_counted_are_those_that_are_taken(store: Store, home: Path) -> None:
    store.create(prompts=tuple(f"{k} {PROMPT[:500]}" for k in range(5000)))
    for item in store(leases.take, "w" * 80, lambda: "lease", lambda _: 1, 200.0):
        store(leases.finish, item, "img_" + "x" * 32, 200.0)
    counted = store(lambda c: c.scalar(sa.select(jobs.jobs.c.stored_bytes)))
    store.engine.dispose()
    taken = (home / "zimage.db").stat().st_size
    assert counted * 0.6 < taken < counted * 1.2


def finish(store: Store, job: Job, cancelled: bool) -> None:
    if cancelled:
        store(job_changes.cancel, store.job(job.id), 300.0)
    for k in range(job.total * (not cancelled)):
        for item in store(leases.take, "w1", lambda: f"l{k}", lambda _: 1, 200.0):  # noqa: B023
            store(leases.finish, item, "img", 300.0)
    assert store.job(job.id).over


@pytest.mark.parametrize("cancelled", [True, False])
def test_bytes_of_jobs_that_are_over_count(store: Store, cancelled: bool) -> None:
    share = replace(SHARE, stored_bytes=40_000)
    job = store.create("1" * 32, prompts=(PROMPT, PROMPT), share=share)
    finish(store, job, cancelled)
    two = store.create("2" * 32, prompts=(PROMPT,), share=share)
    with pytest.raises(LimitReached, match=r"Your jobs take \d+ bytes.* and all may take 40000"):
        store.create("3" * 32, prompts=(PROMPT,), share=share)
    store.create("4" * 32, owner="k2", prompts=(PROMPT,), share=share)
    store(job_changes.delete, two.id)
    store.create("3" * 32, prompts=(PROMPT,), share=share)


def test_open_jobs_are_bounded_for_each_owner(store: Store) -> None:
    share = replace(SHARE, open_jobs=2)
    _, two = (store.create(f"{k}" * 32, share=share) for k in range(2))
    with pytest.raises(LimitReached, match="You have 2 jobs that are not over and may have 2"):
        store.create("3" * 32, share=share)
    assert store.create("1" * 32, share=share).id == two.id  # a replay makes none
    store.create("4" * 32, owner="k2", share=share)
    [item] = store(leases.take, "w1", lambda: "l", lambda _: 1, 200.0)
    store(leases.fail, item, "code", "why", 200.0)
    failed = store.job(item.job_id)
    store(leases.refuse_job, failed.id, "code", "why", 200.0)
    store.create("3" * 32, owner=failed.owner, share=share)
    with pytest.raises(LimitReached, match="You have 2 jobs"):
        store(job_changes.retry, store.job(failed.id), share)


def test_jobs_of_the_version_before_are_drawn(store: Store) -> None:
    """Their prompts stand with their items, and nobody counted their bytes."""
    job = store.create()

    def as_before(connection: sa.Connection) -> None:
        old = {"prompt_number": None, "ready_at": None, "not_before": 0.0, "prompt": "old"}
        connection.execute(jobs.items.update().values(old))
        connection.execute(jobs.prompts.delete())
        connection.execute(jobs.jobs.update().values(stored_bytes=None))

    store(as_before)
    [item] = store(leases.take, "w1", lambda: "lease", lambda _: 1, 200.0)
    assert (item.number, item.prompt) == (1, "old")
    assert store.items(job.id)[0].prompt == "old"
    store(leases.requeue, item, not_before=250.0, tried=True)
    [other] = store(leases.take, "w1", lambda: "lease", lambda _: 1, 200.0)
    assert other.number == 2
    share = replace(SHARE, stored_bytes=jobs.JOB_BYTES + 3 * jobs.ITEM_BYTES + 100)
    with pytest.raises(LimitReached, match="Your jobs take"):
        store.create("2" * 32, share=share)


def test_a_worker_of_the_version_before_draws_nothing_without_its_prompt(store: Store) -> None:
    store.create()

    def ready_before(connection: sa.Connection) -> int | None:
        old = (jobs.items.c.state == "waiting") & (jobs.items.c.not_before <= time.time())
        return connection.scalar(sa.select(sa.func.count()).where(old))

    assert store(ready_before) == 0


def test_old_jobs_are_forgotten_in_bounded_transactions(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_changes, "MAX_ITEMS", 7)
    for k in range(5):
        store(job_changes.cancel, store.create(f"{k}" * 32), float(k))
    assert [store(job_changes.forget_finished, 4.0) for _ in range(3)] == [2, 2, 0]
    for table in (jobs.items, jobs.prompts):
        assert store(lambda c: c.scalar(sa.select(sa.func.count()).select_from(table))) == 3  # noqa: B023


def size_of(path: Path) -> int:
    """Of a database that nobody has open."""
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.stat().st_size


@pytest.mark.sqlite
def test_the_space_of_deleted_jobs_comes_back(store: Store, home: Path) -> None:
    path = home / "zimage.db"
    job = store.create(prompts=tuple(f"{k} {PROMPT}" for k in range(2000)))
    assert size_of(path) > 20 << 20
    store(job_changes.delete, job.id)
    while store(give_space_back):
        pass
    assert size_of(path) < 8 << 20


def test_a_database_of_before_gives_space_back_after_its_migration(tmp_path: Path) -> None:
    path = tmp_path / "zimage.db"
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA journal_mode = WAL")
        raw.execute("CREATE TABLE other (x)")
    migrations.migrate(sqlite_url(path))
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA auto_vacuum").fetchone() == (2,)
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_locked_database_is_migrated_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(_: sa.Engine) -> None:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(migrations, "let_shrink", locked)
    migrations.migrate(sqlite_url(tmp_path / "zimage.db"))
    store = Store(sqlite_url(tmp_path / "zimage.db"))
    store.create()
    store.engine.dispose()
