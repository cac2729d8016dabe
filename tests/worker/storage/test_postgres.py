"""What only a server has: it is connected to, lost, and found again elsewhere."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.postgres import Server
from worker.errors import StoreAway
from worker.storage.database import Database, QueryTooLong, create_engine
from worker.storage.postgres import others

pytestmark = pytest.mark.anyio
LONG = sa.text("SELECT pg_sleep(60)")


@asynccontextmanager
async def opened(url: str, timeout_s: float | None = None) -> AsyncIterator[Database]:
    database = Database(url, timeout_s)
    try:
        yield database
    finally:
        database.close()


@pytest.fixture
def numbers(postgres: Server) -> Iterator[str]:
    """A database with two rows."""
    with postgres.database("zimage_numbers") as url:
        with postgres.connect("zimage_numbers") as admin:
            admin.execute("CREATE TABLE numbers (id int PRIMARY KEY, n int NOT NULL)")
            admin.execute("INSERT INTO numbers VALUES (1, 0), (2, 0)")
        yield url


def add_one(connection: sa.Connection, id: int) -> None:
    connection.execute(sa.text("UPDATE numbers SET n = n + 1 WHERE id = :id"), {"id": id})


def total(connection: sa.Connection) -> int:
    return int(connection.scalar(sa.text("SELECT sum(n) FROM numbers")) or 0)


async def connected(database: Database) -> int:
    """Its failures until then: a busy machine may connect later than a worker waits for it."""
    async with asyncio.timeout(60):
        while True:
            with suppress(StoreAway):
                await database.run(total)
                return database.failures


async def test_whoever_waits_for_each_other_is_tried_again(numbers: str) -> None:
    both = threading.Barrier(2)

    def crosswise(first: int, second: int) -> Any:
        begun: list[bool] = []

        def work(connection: sa.Connection) -> None:
            add_one(connection, first)
            if not begun:
                begun.append(True)
                both.wait(30)
            add_one(connection, second)

        return work

    async with opened(numbers, 20) as one, opened(numbers, 20) as other:
        before = await asyncio.gather(connected(one), connected(other))
        await asyncio.gather(one.run(crosswise(1, 2)), other.run(crosswise(2, 1)))
        assert await one.run(total) == 4
        assert (one.failures, other.failures) == tuple(before)


async def test_what_takes_too_long_is_ended(numbers: str) -> None:
    async with opened(numbers, 0.2) as database:
        for work in (database.run, database.read):
            with pytest.raises(StoreAway, match="too slow"):
                await work(lambda c: c.execute(LONG))
        assert await database.read(total) == 0


async def test_a_search_that_takes_too_long_is_no_fault_of_the_database(
    numbers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.storage.database._SEARCH_S", 0.1)
    async with opened(numbers) as database:
        with pytest.raises(QueryTooLong):
            await database.search(lambda c: c.execute(LONG))
        assert await database.search(total) == 0
        assert database.failures == 0


async def test_all_queries_of_a_look_see_the_same(numbers: str) -> None:
    async with opened(numbers) as reader, opened(numbers) as writer:
        seen, go_on = threading.Event(), threading.Event()

        def look(connection: sa.Connection) -> tuple[int, int]:
            before = total(connection)
            seen.set()
            assert go_on.wait(30)
            return before, total(connection)

        looking = asyncio.create_task(reader.read(look))
        await asyncio.to_thread(seen.wait, 30)
        await writer.run(lambda c: add_one(c, 1))
        go_on.set()
        assert await looking == (0, 0)
        assert await reader.read(total) == 1


@contextmanager
def silent() -> Iterator[int]:
    """The port of somebody who takes connections and says nothing, as behind a broken network."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def test_a_server_that_is_silent_is_not_waited_for(numbers: str, postgres: Server) -> None:
    with silent() as port:
        async with opened(f"postgresql://zimage@127.0.0.1:{port}/zimage") as database:
            async with asyncio.timeout(10):
                with pytest.raises(StoreAway):
                    await database.read(total)


async def test_a_server_that_came_back_is_found_at_once(tmp_path: Path, home: Path) -> None:
    server = Server(home).create().start()
    async with opened(server.url("postgres")) as database:
        one = sa.text("SELECT 1")
        assert await database.read(lambda c: c.scalar(one)) == 1
        server.stop()
        with pytest.raises(StoreAway):
            await database.read(lambda c: c.scalar(one))
        server.start()
        assert await database.read(lambda c: c.scalar(one)) == 1
    server.stop()


def test_a_lost_connection_is_noticed_by_both_sides(numbers: str) -> None:
    given: dict[str, Any] = {}
    engine = create_engine(numbers, 2.0)
    sa.event.listen(engine, "do_connect", lambda _, record, args, options: given.update(options))
    with engine.connect() as connection:
        shown = {
            name: connection.scalar(sa.text(f"SHOW {name}"))
            for name in ("statement_timeout", "idle_in_transaction_session_timeout")
        }
    engine.dispose()
    assert (given["tcp_user_timeout"], given["connect_timeout"]) == (3000, 2)
    waits = given["keepalives_idle"] + given["keepalives_interval"] * given["keepalives_count"]
    assert waits <= 3
    assert shown == {"statement_timeout": "2s", "idle_in_transaction_session_timeout": "10s"}


async def test_the_password_is_read_at_every_connection_and_told_nowhere(
    numbers: str, tmp_path: Path
) -> None:
    file = tmp_path / "pass word"
    url = f"{numbers}&password_file={str(file).replace(' ', '%20')}"
    async with opened(url) as database:
        with pytest.raises(StoreAway, match="pass word"):
            await database.read(total)
        given: list[str] = []
        sa.event.listen(
            database._engine, "do_connect", lambda _, record, args, o: given.append(o["password"])
        )
        for password in ("first", "second"):
            file.write_text(f"{password}\n")
            database._engine.dispose()
            assert await database.read(total) == 0
        assert given == ["first", "second"]
        assert "second" not in repr(database._engine)


@pytest.mark.parametrize("text", ["a\0b", "\0"])
async def test_a_character_that_it_cannot_store_is_replaced(numbers: str, text: str) -> None:
    async with opened(numbers) as database:
        asked = sa.select(sa.bindparam("text", text, sa.Text))
        found = await database.read(lambda c: c.scalar(asked))
        assert found == text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def test_nothing_of_it_is_loaded_for_a_file(tmp_path: Path) -> None:
    code = """
import sys
from worker.storage.migrations import migrate
migrate(sys.argv[1])
assert not [name for name in sys.modules if name.startswith("psycopg")]
"""
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/zimage.db"]
    subprocess.run(command, check=True, timeout=60)


def test_other_hosts_are_seen_though_each_has_a_role_of_its_own(postgres: Server) -> None:
    with postgres.connect() as admin:
        admin.execute("CREATE ROLE shared LOGIN")
        admin.execute("CREATE ROLE shared_far LOGIN IN ROLE shared")
        admin.execute("ALTER ROLE shared_far SET role = shared")
    with postgres.database("zimage_shared") as url:

        def as_role(role: str) -> sa.Engine:
            return create_engine(url.replace("zimage@", f"{role}@"), 5.0)

        here, far = map(as_role, ("shared", "shared_far"))

        def seen() -> int:
            with here.connect() as connection:
                return others(connection)

        assert seen() == 0
        with postgres.connect("zimage_shared"):
            assert seen() == 0
        with far.connect() as other:
            assert other.scalar(sa.text("SELECT current_user")) == "shared"
            assert seen() == 1
        for engine in (here, far):
            engine.dispose()
    with postgres.connect() as admin:
        admin.execute("DROP ROLE shared_far, shared")
