import asyncio
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from worker.errors import StoreAway, status_of
from worker.storage.database import Database, QueryTooLong, sqlite_url
from worker.storage.migrations import ERRORS, SCRIPTS, migrate

NOTES = sa.table("notes", sa.column("id"), sa.column("text"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "deep" / "zimage.db"
    migrate(sqlite_url(found))
    with sqlite3.connect(found) as raw:
        raw.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)")
    return found


def add(connection: sa.Connection, id: int = 1) -> None:
    connection.execute(NOTES.insert().values(id=id, text="kept"))


def count(connection: sa.Connection) -> int:
    return connection.scalar(sa.select(sa.func.count()).select_from(NOTES)) or 0


class Held:
    """Another process's write lock on the database."""

    def __init__(self, path: Path) -> None:
        self.raw = sqlite3.connect(path, isolation_level=None)
        self.raw.execute("BEGIN IMMEDIATE")

    def release(self) -> None:
        self.raw.execute("ROLLBACK")
        self.raw.close()


async def opened(path: Path, timeout_s: float = 0.3) -> AsyncIterator[Database]:
    database = Database(sqlite_url(path), timeout_s)
    try:
        yield database
    finally:
        database.close()


def run(path: Path, work: "object", timeout_s: float = 0.3) -> None:
    async def main() -> None:
        async for database in opened(path, timeout_s):
            await work(database)  # type: ignore[operator]

    asyncio.run(main())


def test_what_was_written_is_read(path: Path) -> None:
    async def work(database: Database) -> None:
        await database.run(add)
        assert await database.read(count) == 1

    run(path, work)


def test_a_failed_transaction_leaves_nothing(path: Path) -> None:
    def half(connection: sa.Connection) -> None:
        add(connection)
        raise RuntimeError("half way")

    async def work(database: Database) -> None:
        with pytest.raises(RuntimeError, match="half way"):
            await database.run(half)
        assert await database.read(count) == 0

    run(path, work)


def test_a_duplicate_is_the_callers_to_see(path: Path) -> None:
    async def work(database: Database) -> None:
        await database.run(add)
        with pytest.raises(IntegrityError):
            await database.run(add)

    run(path, work)


def test_a_locked_database_is_away_for_writers_only(path: Path) -> None:
    async def work(database: Database) -> None:
        held = Held(path)
        with pytest.raises(StoreAway, match="locked") as refused:
            await database.run(add)
        assert status_of(refused.value) == 503
        assert await database.read(count) == 0
        held.release()
        await database.run(add)
        assert database.failures == 1

    run(path, work)


def test_writers_wait_for_one_another(path: Path) -> None:
    async def work(database: Database) -> None:
        held = Held(path)
        adding = asyncio.create_task(database.run(add))
        await asyncio.sleep(0.2)
        held.release()
        await adding

    run(path, work, timeout_s=10)


def test_writes_take_turns(path: Path) -> None:
    told: list[int] = []

    def slowly(connection: sa.Connection) -> None:
        connection.execute(NOTES.insert().values(text="kept"))
        time.sleep(0.01)  # with the lock, as while a disk is slow

    async def work(database: Database) -> None:
        async def one(number: int) -> None:
            await database.run(slowly)
            told.append(number)

        await asyncio.gather(*map(one, range(20)))

    run(path, work, timeout_s=10)
    assert told == list(range(20))


def test_a_read_waits_for_no_number_of_writers(path: Path) -> None:
    async def work(database: Database) -> None:
        held = Held(path)
        writes = [asyncio.create_task(database.run(partial(add, id=k))) for k in range(4)]
        await asyncio.sleep(0.1)
        async with asyncio.timeout(5):
            assert await database.read(count) == 0
        held.release()
        await asyncio.gather(*writes)
        assert await database.read(count) == 4

    run(path, work, timeout_s=20)


def test_a_deleted_database_is_not_replaced_by_an_empty_one(path: Path) -> None:
    async def work(database: Database) -> None:
        await database.run(add)
        for file in path.parent.glob("zimage.db*"):
            file.unlink()
        with pytest.raises(StoreAway):
            await database.run(add)

    run(path, work)
    assert not path.exists()


def test_a_replaced_database_is_noticed(path: Path) -> None:
    async def work(database: Database) -> None:
        await database.run(add)
        for file in path.parent.glob("zimage.db*"):
            file.unlink()
        migrate(sqlite_url(path))
        with pytest.raises(StoreAway, match="no such table"):
            await database.run(add)

    run(path, work)


def test_too_many_waiting_calls_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.storage.database._MAX_WAITING", 1)

    async def work(database: Database) -> None:
        held = Held(path)
        first = asyncio.create_task(database.run(add))
        await asyncio.sleep(0)
        with pytest.raises(StoreAway, match="too many"):
            await database.run(add)
        assert await database.read(count) == 0  # the line of others
        held.release()
        await first
        assert await database.read(count) == 1

    run(path, work, timeout_s=10)


def endless(connection: sa.Connection) -> None:
    numbers = "WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM n)"
    connection.exec_driver_sql(f"{numbers} SELECT count(*) FROM n")


def test_a_search_that_takes_too_long_is_ended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.storage.database._SEARCH_S", 0.05)

    async def work(database: Database) -> None:
        for _ in range(3):
            with pytest.raises(QueryTooLong):
                await database.search(endless)
        assert await database.search(count) == 0
        assert database.failures == 0

    run(path, work, timeout_s=10)


def test_a_read_that_takes_too_long_is_ended(path: Path) -> None:
    async def work(database: Database) -> None:
        for _ in range(3):  # more than there are threads: each comes back
            with pytest.raises(StoreAway, match="too slow"):
                await database.read(endless)
        assert await database.read(count) == 0
        assert database.failures == 3

    run(path, work, timeout_s=0.1)


def test_every_transaction_is_synced_to_disk(path: Path) -> None:
    async def work(database: Database) -> None:
        modes = await database.read(
            lambda c: [
                c.exec_driver_sql(f"PRAGMA {p}").scalar() for p in ("synchronous", "journal_mode")
            ]
        )
        assert modes == [2, "wal"]

    run(path, work)


LAST = max(path.name for path in (SCRIPTS / "versions").glob("*.py")).partition("_")[0]
ADD_NOTE_TABLE = f"""
import sqlalchemy as sa
from alembic import op
revision, down_revision = "9999", "{LAST}"
def upgrade() -> None:
    op.create_table("later", sa.Column("id", sa.Integer, primary_key=True))
"""


def scripts_and(folder: Path, revision: str) -> Path:
    """The migrations and one more."""
    shutil.copytree(SCRIPTS, folder / "migrations")
    (folder / "migrations" / "versions" / "9999_later.py").write_text(revision)
    return folder / "migrations"


def tables(path: Path) -> set[str]:
    with sqlite3.connect(path) as raw:
        return {name for (name,) in raw.execute("SELECT name FROM sqlite_master")}


def test_a_migration_that_fails_half_way_leaves_nothing(path: Path, tmp_path: Path) -> None:
    before = tables(path)
    scripts = scripts_and(tmp_path, ADD_NOTE_TABLE + '    op.execute("no SQL")\n')
    with pytest.raises(ERRORS, match="syntax error"):
        migrate(sqlite_url(path), scripts)
    assert tables(path) == before


def test_a_database_of_a_newer_version_is_left_as_it_is(path: Path, tmp_path: Path) -> None:
    migrate(sqlite_url(path), scripts_and(tmp_path, ADD_NOTE_TABLE))
    migrate(sqlite_url(path))
    assert "later" in tables(path)


def test_migrating_twice_changes_nothing(path: Path) -> None:
    def schema() -> list[tuple[str]]:
        with sqlite3.connect(path) as raw:
            assert raw.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
            return raw.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()

    before = schema()
    migrate(sqlite_url(path))
    assert schema() == before
    assert path.stat().st_mode & 0o777 == 0o600
