"""All rows of an SQLite file into a database of PostgreSQL that holds none.

Table after table, those first that others refer to. Each is copied, read again and compared in one
transaction: it is there whole or not at all, so whoever is cut short begins again and goes on with
the next one. Nobody writes into the file meanwhile, and no row of it is changed.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from alembic.migration import MigrationContext

from worker.storage import key_limits, postgres, search
from worker.storage.database import create_engine, lock_to_migrate
from worker.storage.schema import insert_or

_TIMEOUT_S = 10.0
_AT_ONCE = 1000
_NOT_MOVED = ("alembic_version", "images_search", "images_terms", search.numbers.name)
"""What migrations make, and SQLite's own index of prompts: PostgreSQL has another one."""
_MADE_WITH_ONE_ROW = "keys_state"
_AS_MADE = {"id": 1, "version": 0, "secret_check": None}

State = Literal["to be moved", "moved", "there already"]


@dataclass(frozen=True)
class Content:
    """Of a table: what two of them with the same rows have in common, in whatever order."""

    rows: int
    digest: str
    """The sum of the rows' SHA-256, in hexadecimal."""


@dataclass(frozen=True)
class MovedTable:
    name: str
    content: Content
    state: State


class NotMovable(Exception):
    """What keeps the rows from being moved; nothing was changed but tables moved before."""


@contextmanager
def opened(source_url: str, target_url: str) -> Iterator["DatabaseMove"]:
    """Until the end nobody else writes into the file of ``source_url``. Raises ``NotMovable`` or
    ``SQLAlchemyError``."""
    source, target = create_engine(source_url, _TIMEOUT_S), create_engine(target_url, _TIMEOUT_S)
    try:
        with source.connect() as file, file.begin():
            yield DatabaseMove(file, target)
    finally:
        source.dispose()
        target.dispose()


def count_today(file: sa.Connection, images: dict[str, int], now: float) -> None:
    """Note how many pictures keys, by their ids, have drawn today: a host of its own counts them in
    files, and with PostgreSQL they stand in a table."""
    day = int(now // 86_400)
    for key_id, drawn in images.items():
        row = insert_or(key_limits.days).values(key_id=key_id, day=day, images=drawn)
        known = [key_limits.days.c.key_id, key_limits.days.c.day]
        file.execute(row.on_conflict_do_update(index_elements=known, set_={"images": drawn}))


class DatabaseMove:
    """``file``: in a transaction that writes, so that no other can."""

    def __init__(self, file: sa.Connection, target: sa.Engine) -> None:
        self._file, self._target = file, target

    def survey(self) -> list[MovedTable]:
        """What is to be done, table by table. Reads all rows of both."""
        names = _names(self._file)
        with self._target.connect() as server, server.begin():
            postgres.let_migrate(server)
            _require_alone(server)
            made = set(sa.inspect(server).get_table_names())
        if not made & {*names, "alembic_version"}:  # zimage has not been here yet
            tables = _tables(self._file, names)
            return [_to_be_moved(table, _content(self._file, table)) for table in tables]
        return [self._surveyed(table) for table in self._same_tables()]

    def move(self, told: Callable[[MovedTable], None]) -> None:
        """Move what is not there yet; ``told`` hears of each table that is. Both are migrated."""
        for found in self.survey():  # all are looked at before the first is written
            if found.state == "to be moved":
                self._copy(found)
                told(MovedTable(found.name, found.content, "moved"))
            else:
                told(found)
        with self._target.connect() as server, server.begin():
            postgres.let_migrate(server)
            server.exec_driver_sql("ANALYZE")  # whoever asks next shall not look at every row

    def _same_tables(self) -> list[sa.Table]:
        with self._target.connect() as server, server.begin():
            here, there = _revision(self._file), _revision(server)
            if here != there:
                raise NotMovable(
                    f"the file is at revision {here} and the server at {there}: "
                    "one of them was used by another version of the kit"
                )
            return _tables(server, _names(self._file))

    def _surveyed(self, table: sa.Table) -> MovedTable:
        here = _content(self._file, table)
        with self._target.connect() as server, server.begin():
            postgres.let_migrate(server)
            there = _content(server, table)
            if here == there:
                return MovedTable(table.name, here, "there already")
            _require_empty(server, table, there)
        return _to_be_moved(table, here)

    def _copy(self, found: MovedTable) -> None:
        with self._target.connect() as server, server.begin():
            lock_to_migrate(server)
            (table,) = _tables(server, {found.name})
            name = server.dialect.identifier_preparer.format_table(table)
            server.exec_driver_sql(f"LOCK TABLE {name} IN SHARE ROW EXCLUSIVE MODE")
            _require_empty(server, table, _content(server, table))
            server.execute(table.delete())
            names = _columns(table)
            for rows in _rows(self._file, table):
                named = [dict(zip(names, row, strict=True)) for row in rows]
                server.execute(table.insert(), named)
            _set_sequences(server, table)
            if _content(server, table) != found.content:
                raise NotMovable(f"the copy of table {table.name} differs; it is not kept")


def _to_be_moved(table: sa.Table, content: Content) -> MovedTable:
    return MovedTable(table.name, content, "to be moved")


def _require_alone(server: sa.Connection) -> None:
    if others := postgres.others(server):
        raise NotMovable(
            f"{others} connections of zimage use the server's database: end the cells and "
            "commands that they belong to (zimage down)"
        )


def _require_empty(server: sa.Connection, table: sa.Table, there: Content) -> None:
    if there.rows == 0:
        return
    if table.name == _MADE_WITH_ONE_ROW and there.rows == 1:
        (row,) = server.execute(sa.select(table)).mappings()
        if dict(row) == _AS_MADE:
            return
    raise NotMovable(
        f"the server's table {table.name} holds {there.rows:,} rows, and not those of the file; "
        "name an empty database (createdb makes one)"
    )


def _names(file: sa.Connection) -> set[str]:
    return {name for name in sa.inspect(file).get_table_names() if not name.startswith(_NOT_MOVED)}


def _tables(connection: sa.Connection, names: set[str]) -> list[sa.Table]:
    """Those that others refer to first. As they are made, not as this version's code knows them:
    so none is forgotten."""
    made = sa.MetaData()
    made.reflect(connection, only=sorted(names))
    return [table for table in made.sorted_tables if table.name in names]


def _revision(connection: sa.Connection) -> str:
    heads = MigrationContext.configure(connection).get_current_heads()
    return ", ".join(sorted(heads)) or "none"


def _columns(table: sa.Table) -> list[str]:
    return sorted(table.columns.keys())


def _rows(connection: sa.Connection, table: sa.Table) -> Iterator[list[tuple[Any, ...]]]:
    """All rows in parts, as PostgreSQL can have them, with the values in the order of
    ``_columns``."""
    asked = sa.select(*(table.c[name] for name in _columns(table)))
    found = connection.execute(asked.execution_options(yield_per=_AT_ONCE))
    for rows in found.partitions():
        yield [tuple(map(_storable, row)) for row in rows]


def _storable(value: Any) -> Any:
    return postgres.without_nul(value) if isinstance(value, str) else value


def _content(connection: sa.Connection, table: sa.Table) -> Content:
    count, total = 0, 0
    for rows in _rows(connection, table):
        for row in rows:
            told = repr(row).encode("utf-8", "surrogatepass")
            total += int.from_bytes(hashlib.sha256(told).digest())
        count += len(rows)
    return Content(count, f"{total % 2**256:064x}")


def _set_sequences(server: sa.Connection, table: sa.Table) -> None:
    """What the server counts goes on behind the rows that came with their numbers."""
    for column in table.primary_key.columns:
        found = sa.func.pg_get_serial_sequence(table.name, column.name)
        sequence = server.scalar(sa.select(found))
        if sequence is not None:
            server.execute(sa.select(sa.func.setval(sequence, sa.func.max(column))))
