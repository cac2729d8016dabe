"""Databases for tests, of each kind that a cell may have: what differs between them stands here."""

import functools
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from tests.postgres import Server
from tests.worker.processes import wait_until
from worker.storage.database import is_sqlite, sqlite_url
from worker.storage.migrations import migrate

KINDS = ("sqlite", "postgresql")
_TOLD = "database-url"
_END_OTHERS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
_COLUMNS = """
    SELECT version_num, '', '' FROM alembic_version
    UNION ALL SELECT c.relname::text, a.attname::text, a.atttypid::regtype::text
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND a.attnum > 0
    ORDER BY 1, 2, 3
"""


def url_of(home: Path) -> str:
    """The database of workers whose state is in ``home``."""
    told = home / _TOLD
    return told.read_text() if told.exists() else sqlite_url(home / "zimage.db")


def prepare(url: str) -> None:
    """Migrate an SQLite database that is not there yet. Those of PostgreSQL are made so."""
    path = Path(sa.make_url(url).database or "")
    if is_sqlite(url) and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(_migrated(), path)


@functools.cache
def _migrated() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="zimage-migrated-"))
    migrate(sqlite_url(folder / "zimage.db"))
    with closing(sqlite3.connect(folder / "zimage.db")) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return folder / "zimage.db"


class Emptied:
    """One database of a server, migrated once and emptied after each test: thirty times as quick
    as a new one."""

    def __init__(self, server: Server, url: str) -> None:
        migrate(url)
        self._server, self._url = server, url
        self._name = sa.make_url(url).database or ""
        with server.connect(self._name) as admin:
            self._schema = _schema(admin)

    def use(self, home: Path) -> Iterator[str]:
        (home / _TOLD).write_text(self._url)
        yield self._url
        with self._server.connect(self._name) as admin:
            admin.execute(_END_OTHERS)
            kept = {"alembic_version", "keys_state"}
            with admin.transaction():
                for table in set(_tables(admin)) - kept:
                    admin.execute(f"DELETE FROM {table}")
                admin.execute("UPDATE keys_state SET version = 0, secret_check = NULL")
            assert _schema(admin) == self._schema, "others share this database: use one of its own"


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Whoever takes ``url`` runs with each kind, unless it is marked ``sqlite``."""
    if "url" in metafunc.fixturenames:
        only = metafunc.definition.get_closest_marker("sqlite")
        metafunc.parametrize("url", KINDS[:1] if only else KINDS, indirect=True)


def _schema(connection: "psycopg.Connection[Any]") -> list[tuple[Any, ...]]:
    """Its revision, and its columns."""
    return connection.execute(_COLUMNS).fetchall()


def _tables(connection: "psycopg.Connection[Any]") -> list[str]:
    found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return [name for (name,) in found]


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Somebody else writes, and does not end: others may read."""
    made = sa.make_url(url)
    if is_sqlite(url):
        with closing(sqlite3.connect(made.database or "", isolation_level=None)) as raw:
            raw.execute("BEGIN IMMEDIATE")
            yield
            raw.execute("ROLLBACK")
    else:
        host = str(made.query["host"])
        with psycopg.connect(host=host, user="zimage", dbname=made.database) as other:
            wait_until(functools.partial(_lock_tables, other))
            yield
            other.rollback()


def _lock_tables(connection: "psycopg.Connection[Any]") -> bool:
    """Whether that was possible at once: whoever waits for one and holds others is in a deadlock
    with a writer of these."""
    try:
        connection.execute(f"LOCK TABLE {', '.join(_tables(connection))} IN EXCLUSIVE MODE NOWAIT")
    except psycopg.errors.LockNotAvailable:
        connection.rollback()
        return False
    return True


@contextmanager
def away(url: str) -> Iterator[None]:
    """Nobody gets at the database."""
    made = sa.make_url(url)
    if is_sqlite(url):
        path = Path(made.database or "")
        path.rename(path.with_suffix(".away"))
        yield
        path.with_suffix(".away").rename(path)
    else:
        host, name = str(made.query["host"]), made.database
        with psycopg.connect(host=host, user="zimage", dbname="postgres", autocommit=True) as admin:
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
            )
            yield
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
