"""The cell's database: transactions off the event loop, each with a deadline.

SQLite in WAL mode by default, PostgreSQL by URL: nothing outside this module, ``postgres``,
``search`` and the migrations may depend on either. A database that is locked, full, gone or not
migrated raises ``StoreAway``: what can do without it goes on.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event, exc

from worker.errors import StoreAway
from worker.storage import postgres
from worker.storage.locks import lock

T = TypeVar("T")
Row = TypeVar("Row")

_WRITERS = 1  # two would poll for SQLite's lock, and one lose to the other again and again
_READERS = 2  # of their own: they wait for no writer, nor for a thread that does
_SEARCHERS = 2  # so that whoever reads a row or two never waits for one who looks at all of them
_KEY_READERS = 1  # a key that was revoked must not stay good because others read
_COUNTERS = 1  # of what requests of keys with limits wait for
_CONNECTIONS = _WRITERS + _READERS + _SEARCHERS + _KEY_READERS + _COUNTERS
_MAX_WAITING = 256
_SQLITE_S, _POSTGRES_S = 5.0, 2.0
_SEARCH_S = 1.0
_PATIENCE_S = 10.0  # a lost server shows in the connection, within about three
_ATTEMPTS = 3  # of a transaction that others are in the way of
_STEPS = 20_000  # of SQLite's machine between two looks at the clock: about a millisecond
_MAX_LOG_BYTES = 64 << 20  # of the write-ahead log once a large transaction is over
_SPARE_PAGES = 1024  # of 4 KiB
_PAGES_AT_ONCE = 1024
_MAX_COPIED_PAGES = 65_536


def sqlite_url(path: Path) -> str:
    """The URL of the SQLite database in file ``path``."""
    return f"sqlite:///{path}"


def is_sqlite(url: str) -> bool:
    """Whether ``url`` names an SQLite file."""
    return url.startswith("sqlite:")


class QueryTooLong(Exception):
    """A search took longer than any may, and was ended."""


class _InTheWay(StoreAway):
    """Another transaction; the next attempt may succeed."""


class Database:
    """``timeout_s`` bounds each call, waiting for other writers included; what does not answer is
    waited for a second longer. Each kind of call has threads and connections of its own, so that
    none waits for another kind.

    An SQLite file must exist (``migrations.migrate`` makes it): a deleted one is not replaced by
    an empty one in silence.
    """

    def __init__(self, url: str, timeout_s: float | None = None) -> None:
        self.is_shared = not is_sqlite(url)
        """Whether other hosts may have the same one."""
        self._timeout_s = timeout_s or (_SQLITE_S if is_sqlite(url) else _POSTGRES_S)
        self._engine = create_engine(url, self._timeout_s)
        self._writers = _Lane(_WRITERS, "database-write")
        self._readers = _Lane(_READERS, "database-read")
        self._searchers = _Lane(_SEARCHERS, "database-search")
        self._key_readers = _Lane(_KEY_READERS, "database-keys")
        self._counters = _Lane(_COUNTERS, "database-count")
        self._closed = False
        self.failures = 0
        """Calls that raised ``StoreAway``."""

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        """The result of ``work`` inside one transaction that may write: all of it or nothing.

        After a ``StoreAway`` for lack of time the transaction may still be committed: give what
        must not happen twice a unique key.
        """
        return await self._call(self._writers, lambda: self._writing(work))

    async def count(self, work: Callable[[sa.Connection], T], *, at_once: bool = False) -> T:
        """``run`` for what a request waits for, which waits for no other writer. ``at_once``: each
        statement of ``work`` is a transaction by itself, so that one costs one round trip.

        A server that is merely slow is waited for longer: nobody must take it for away."""
        return await self._call(
            self._counters, lambda: self._writing(work, at_once=at_once, slow=True), _PATIENCE_S
        )

    async def run_each(
        self, rows: Sequence[Row], work: Callable[[sa.Connection, Sequence[Row]], object]
    ) -> list[tuple[Row, Exception]]:
        """``work`` on all ``rows`` together, or in smaller parts where some cannot be stored: those
        are returned with the reason, and hold up no other. Raises ``StoreAway``; what was done
        before stays done, so ``work`` must bear to be repeated."""
        if not rows:
            return []
        try:
            await self.run(lambda connection: work(connection, rows))
        except StoreAway:
            raise
        except Exception as error:
            if len(rows) == 1:
                return [(rows[0], error)]
            half = len(rows) // 2
            return [
                *await self.run_each(rows[:half], work),
                *await self.run_each(rows[half:], work),
            ]
        return []

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """The result of ``work``, which only reads; it waits for no writer."""
        return await self._read(self._readers, work)

    async def read_keys(self, work: Callable[[sa.Connection], T]) -> T:
        """``read`` for whoever must see changes of keys at once, whatever others read."""
        return await self._read(self._key_readers, work)

    async def search(self, work: Callable[[sa.Connection], T]) -> T:
        """``read`` for what may look at very many rows. Raises ``QueryTooLong`` after a second."""
        return await self._call(self._searchers, lambda: self._reading(work, _SEARCH_S))

    async def _read(self, lane: "_Lane", work: Callable[[sa.Connection], T]) -> T:
        try:
            return await self._call(lane, lambda: self._reading(work, self._timeout_s))
        except QueryTooLong:
            self.failures += 1
            raise _too_slow() from None

    def _reading(self, work: Callable[[sa.Connection], T], limit_s: float) -> T:
        def limited(connection: sa.Connection) -> T:
            with _limit(connection, limit_s):
                return work(connection)

        return self._transaction(limited, read_only=True)

    def _writing(
        self, work: Callable[[sa.Connection], T], *, at_once: bool = False, slow: bool = False
    ) -> T:
        again: tuple[type[Exception], ...] = (_InTheWay, QueryTooLong) if slow else (_InTheWay,)
        try:
            for _ in range(_ATTEMPTS - 1):
                with suppress(*again):
                    return self._transaction(work, at_once=at_once)
            return self._transaction(work, at_once=at_once)
        except QueryTooLong:
            raise _too_slow() from None

    def _transaction(
        self,
        work: Callable[[sa.Connection], T],
        *,
        read_only: bool = False,
        at_once: bool = False,
    ) -> T:
        pool = self._engine.pool
        try:
            with self._engine.connect() as connection:
                connection = connection.execution_options(**_mode(connection, read_only, at_once))
                with connection.begin():
                    return work(connection)
        except exc.DBAPIError as error:
            if isinstance(error, exc.IntegrityError | exc.DataError):
                raise  # the caller's own mistake or its duplicate key
            if _was_limited(error):
                raise QueryTooLong from None
            away = _InTheWay if postgres.is_conflict(error) else StoreAway
            raise away(f"The database cannot be used now ({_why(error)}).") from error
        finally:
            if self._closed:
                pool.dispose()  # nobody else closes what came back to it since

    async def _call(self, lane: "_Lane", work: Callable[[], T], wait_s: float | None = None) -> T:
        try:
            return await self._in_time(lane, work, wait_s or self._timeout_s + 1)
        except StoreAway:
            self.failures += 1
            raise

    async def _in_time(self, lane: "_Lane", work: Callable[[], T], wait_s: float) -> T:
        call = lane.begin(work)
        try:
            # Not wait_for: before Python 3.12 it swallows a cancellation that meets the result.
            async with asyncio.timeout(wait_s):
                return await asyncio.shield(call)
        except TimeoutError:
            call.cancel()  # nobody waits for it: if it has not begun, it never does
            raise StoreAway("The database cannot be used now (it does not answer).") from None

    def close(self) -> None:
        self._closed = True
        lanes = self._writers, self._readers, self._searchers, self._key_readers, self._counters
        for lane in lanes:
            lane.close()
        self._engine.dispose()


class _Lane:
    """Some threads, and a bounded line of calls that wait for them."""

    def __init__(self, threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._waiting = 0

    def begin(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        """``work`` under way or in the line. Raises ``StoreAway`` where that is too long."""
        if self._waiting >= _MAX_WAITING:
            raise StoreAway("The database cannot be used now (too many calls wait for it).")
        self._waiting += 1
        call = asyncio.get_running_loop().run_in_executor(self._threads, work)
        call.add_done_callback(self._done)
        return call

    def _done(self, call: "asyncio.Future[Any]") -> None:
        self._waiting -= 1
        if not call.cancelled():
            call.exception()  # nobody may be left to ask

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def create_engine(url: str, timeout_s: float) -> sa.Engine:
    """An engine whose SQLite connections are durable, wait at most ``timeout_s`` for other
    writers, and notice that their file was replaced. For PostgreSQL's see ``postgres``."""
    made = sa.make_url(url)
    if made.get_backend_name() != "sqlite":
        return postgres.create_engine(made, timeout_s, _CONNECTIONS)
    path = Path(made.database or "")
    engine = sa.create_engine(
        "sqlite://",
        creator=lambda: _connect(path, timeout_s),
        poolclass=sa.QueuePool,
        pool_size=_CONNECTIONS,
        max_overflow=0,
        pool_timeout=timeout_s,
    )
    event.listen(engine, "connect", lambda dbapi, record: record.info.update(file=_file(path)))
    event.listen(engine, "checkout", lambda dbapi, record, _: _same_file(record, path))
    event.listen(engine, "begin", _begin)
    return engine


def _connect(path: Path, timeout_s: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=timeout_s,
        isolation_level=None,  # _begin decides how a transaction starts
        check_same_thread=False,
    )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA journal_size_limit = {_MAX_LOG_BYTES}")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


@contextmanager
def _limit(connection: sa.Connection, limit_s: float) -> Iterator[None]:
    """End what runs inside once it has taken ``limit_s``; ``_was_limited`` tells its error. The one
    place that knows how a kind of database does it."""
    raw = connection.connection.driver_connection
    if not isinstance(raw, sqlite3.Connection):
        postgres.limit(connection, limit_s)
        yield
        return
    deadline = time.monotonic() + limit_s
    raw.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
    try:
        yield
    finally:
        raw.set_progress_handler(None, 0)


def _was_limited(error: exc.DBAPIError) -> bool:
    interrupted = getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT
    return interrupted or postgres.was_limited(error)


def _mode(connection: sa.Connection, read_only: bool, at_once: bool) -> dict[str, Any]:
    if connection.dialect.name == "sqlite":
        return {"read_only": read_only}
    return postgres.READ_ONLY if read_only else postgres.AT_ONCE if at_once else {}


def _too_slow() -> StoreAway:
    return StoreAway("The database cannot be used now (it is too slow).")


def clock(connection: sa.Connection) -> float:
    """Now, in seconds since the epoch, by the one clock of all who use the database."""
    if connection.dialect.name == "sqlite":
        return time.time()
    now = sa.select(sa.func.extract("epoch", sa.func.clock_timestamp()))
    return float(connection.execute(now).scalar_one())


def lock_to_migrate(connection: sa.Connection) -> None:
    """Nobody else migrates until the transaction ends."""
    lock(connection, "migration")
    if connection.dialect.name != "sqlite":
        postgres.let_migrate(connection)


def give_space_back(connection: sa.Connection) -> bool:
    """Cut a few MiB of unused pages off an SQLite file; whether there may be more. What is left
    unused is what the next job needs. PostgreSQL sees to it by itself."""
    if connection.dialect.name != "sqlite":
        return False
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    (unused,) = raw.execute("PRAGMA freelist_count").fetchone()
    (mode,) = raw.execute("PRAGMA auto_vacuum").fetchone()
    if not mode or unused <= _SPARE_PAGES:
        return False
    for _ in range(min(_PAGES_AT_ONCE, unused - _SPARE_PAGES)):
        raw.execute("PRAGMA incremental_vacuum(1)")  # this module steps a pragma only once
    return True


def let_shrink(engine: sa.Engine) -> None:
    """Make ``give_space_back`` work for an SQLite file, unless it is large and of an older version,
    for all of it is copied. Raises ``sqlite3.Error`` where it is locked or the disk is full."""
    if engine.dialect.name != "sqlite":
        return
    with engine.connect() as connection:
        raw = connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        (mode,) = raw.execute("PRAGMA auto_vacuum").fetchone()
        (pages,) = raw.execute("PRAGMA page_count").fetchone()
        if not mode and pages <= _MAX_COPIED_PAGES:
            raw.execute("PRAGMA auto_vacuum = INCREMENTAL")
            raw.execute("VACUUM")


def _begin(connection: sa.Connection) -> None:
    # A deferred transaction that turns into a writer fails at once beside another writer.
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _file(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _same_file(record: Any, path: Path) -> None:
    if record.info["file"] != _file(path):
        raise exc.DisconnectionError("the database's file was replaced")


def _why(error: exc.DBAPIError) -> str:
    return str(error.orig or error).splitlines()[0][:200]
