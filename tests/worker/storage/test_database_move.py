"""All rows of an SQLite file are in PostgreSQL afterwards, or it is said why not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from tests.postgres import Server
from tests.worker.databases import prepare
from worker.storage.database import create_engine, sqlite_url
from worker.storage.database_move import MovedTable, NotMovable, opened
from worker.storage.migrations import migrate

FEW, MANY = 12, 1500
"""Of each table; many are more than are under way at once."""
_ODD = ("狐狸 \0 '; --", "", "\\N\t\n", "🦊" * 40)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return filled(tmp_path, FEW)


def filled(folder: Path, rows: int) -> str:
    url = sqlite_url(folder / "zimage.db")
    prepare(url)
    fill(url, rows)
    return url


@pytest.fixture(scope="module")
def empty(postgres: Server) -> Iterator[str]:
    """The name of a migrated database that stays empty."""
    with postgres.database("zimage_empty") as url:
        migrate(url)
        yield "zimage_empty"


@pytest.fixture
def target(postgres: Server, empty: str) -> Iterator[str]:
    with postgres.database("zimage_moved", empty) as url:
        yield url


def fill(url: str, rows: int) -> None:
    """Rows for every table that there is, with whatever its columns can have."""
    engine = create_engine(url, 10.0)
    with engine.connect() as connection, connection.begin():
        made = sa.MetaData()
        made.reflect(connection, only=lambda name, _: not name.startswith(("images_", "alembic")))
        for table in made.sorted_tables:
            if table.name == "keys_state":
                connection.execute(table.update().values(version=4711, secret_check=b"\0\xff"))
            elif table.name != "image_numbers":  # triggers see to it
                connection.execute(table.insert(), [row(table, k) for k in range(rows)])
    engine.dispose()


def row(table: sa.Table, k: int) -> dict[str, Any]:
    return {column.name: value(column, k) for column in table.columns}


def value(column: sa.Column[Any], k: int) -> Any:
    kind = column.type
    if column.nullable and k % 3 == 0:
        return None
    match kind:
        case sa.Boolean():
            return k % 2 == 0
        case sa.SmallInteger():
            return k % 100
        case sa.BigInteger():
            return 2**53 + k
        case sa.Integer():
            return k
        case sa.Float():
            return (0.1 + k) / 3
        case sa.LargeBinary():
            return k.to_bytes(4) + b"\0'"
        case sa.Text():
            return f"{_ODD[k % len(_ODD)]}{k}"
        case _:
            return f"r{k}"


def moved(source: str, target: str) -> list[MovedTable]:
    told: list[MovedTable] = []
    with opened(source, target) as rows:
        rows.move(told.append)
    return told


def contents(url: str, table: str) -> list[tuple[Any, ...]]:
    engine = create_engine(url, 10.0)
    with engine.connect() as connection:
        made = sa.Table(table, sa.MetaData(), autoload_with=connection)
        columns = sorted(made.columns, key=lambda column: column.name)
        found = [tuple(row) for row in connection.execute(sa.select(*columns))]
    engine.dispose()
    return sorted(found, key=repr)


def as_moved(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """``rows`` as PostgreSQL has them, whose texts take every character but one."""
    here = [
        tuple(part.replace("\0", "\ufffd") if isinstance(part, str) else part for part in row)
        for row in rows
    ]
    return sorted(here, key=repr)


def connected(postgres: Server) -> "psycopg.Connection[Any]":
    return postgres.connect("zimage_moved")


def test_every_row_of_every_table_is_there_and_the_same(tmp_path: Path, target: str) -> None:
    source = filled(tmp_path, MANY)
    told = moved(source, target)
    names = {table.name for table in told}
    assert {"keys", "keys_state", "usage_days", "jobs", "job_items", "images"} <= names
    assert {table.state for table in told} == {"moved"}
    assert all(table.content.rows in (1, MANY) for table in told)
    for name in names:
        assert contents(target, name) == as_moved(contents(source, name)), name


def test_jobs_come_before_their_items(source: str, target: str) -> None:
    names = [table.name for table in moved(source, target)]
    assert names.index("jobs") < names.index("job_items")
    assert names.index("jobs") < names.index("job_prompts")


def test_again_there_is_nothing_to_do(source: str, target: str) -> None:
    first = moved(source, target)
    again = moved(source, target)
    assert [table.content for table in again] == [table.content for table in first]
    assert {table.state for table in again} == {"there already"}


def test_what_a_server_counts_goes_on_behind_the_rows(
    source: str, target: str, postgres: Server
) -> None:
    moved(source, target)
    with connected(postgres) as admin:
        asked = "SELECT nextval(pg_get_serial_sequence('keys_state', 'id'))"
        assert admin.execute(asked).fetchone() == (2,)


def test_rows_of_others_are_left_alone_and_nothing_is_written(
    source: str, target: str, postgres: Server
) -> None:
    with connected(postgres) as admin:
        admin.execute("INSERT INTO job_holds VALUES ('somebody', 1)")
        with pytest.raises(NotMovable, match="table job_holds holds 1 rows, and not those of"):
            moved(source, target)
        assert admin.execute("SELECT count(*) FROM keys").fetchone() == (0,)
        assert admin.execute("SELECT * FROM job_holds").fetchall() == [("somebody", 1.0)]


def test_a_server_whose_keys_were_changed_is_not_empty(
    source: str, target: str, postgres: Server
) -> None:
    with connected(postgres) as admin:
        admin.execute("UPDATE keys_state SET version = 5")
    with pytest.raises(NotMovable, match="table keys_state holds 1 rows"):
        moved(source, target)


def test_a_copy_that_differs_is_not_kept(source: str, target: str, postgres: Server) -> None:
    with connected(postgres) as admin:
        admin.execute(
            "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN IF NEW.id = ''r7'' THEN NEW.seed := 1; END IF; RETURN NEW; END'"
        )
        admin.execute(
            "CREATE TRIGGER spoil BEFORE INSERT ON images FOR EACH ROW EXECUTE FUNCTION spoil()"
        )
        with pytest.raises(NotMovable, match="the copy of table images differs"):
            moved(source, target)
        assert admin.execute("SELECT count(*) FROM images").fetchone() == (0,)
        admin.execute("DROP TRIGGER spoil ON images")
    states = {table.name: table.state for table in moved(source, target)}
    assert (states["hosts"], states["images"]) == ("there already", "moved")


def test_a_cell_at_work_on_the_server_is_in_the_way(
    source: str, target: str, postgres: Server
) -> None:
    working = create_engine(target, 1.0)
    with (
        working.connect(),
        pytest.raises(NotMovable, match="1 connections of zimage use the server's database"),
    ):
        moved(source, target)
    working.dispose()


def test_nobody_writes_into_the_file_meanwhile(source: str, target: str) -> None:
    other = create_engine(source, 0.05)
    with opened(source, target), pytest.raises(sa.exc.OperationalError, match="locked"):
        other.connect().begin()
    other.dispose()


def test_another_version_of_the_tables_is_refused(
    source: str, target: str, postgres: Server
) -> None:
    with connected(postgres) as admin:
        admin.execute("UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(NotMovable, match="the server at 0001: one of them was used by another"):
        moved(source, target)
