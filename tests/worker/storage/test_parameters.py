from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from tests.worker.later import Later
from worker.storage import parameters
from worker.storage.migrations import SCRIPTS
from worker.types import FIELDS, KNOWN, Parameters

SOME = Parameters(64, 96, 8, 2.0, "blurry")


@pytest.fixture
def connection() -> Iterator[sa.Connection]:
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def test_parameters_come_back_from_a_table_as_they_were(connection: sa.Connection) -> None:
    ink = Later(64, 96, 8, 2.0, "blurry", style="ink")
    table = sa.Table("drawn", sa.MetaData(), *parameters.columns(Later))
    table.create(connection)
    connection.execute(table.insert(), parameters.values(ink))
    row = connection.execute(sa.select(table)).mappings().one()
    assert parameters.gathered(row, Later) == {"parameters": ink}


def test_a_row_of_the_version_before_has_the_defaults_of_later_fields(
    connection: sa.Connection,
) -> None:
    table = sa.Table("drawn", sa.MetaData(), *parameters.columns(Later))
    table.create(connection)
    connection.execute(table.insert(), parameters.values(SOME))  # knows no style
    row = connection.execute(sa.select(table)).mappings().one()
    assert parameters.gathered(row, Later) == {"parameters": Later(64, 96, 8, 2.0, "blurry")}


@pytest.mark.parametrize("name", parameters.stored())
def test_each_field_names_the_migration_that_adds_it(name: str) -> None:
    number = FIELDS[name].about.since or 2  # the first of them came with the gallery
    (script,) = (SCRIPTS / "versions").glob(f"{number:04d}_*.py")
    assert f'"{name}"' in script.read_text()


def test_rows_that_need_a_newer_version_are_not_known(connection: sa.Connection) -> None:
    table = sa.Table("wanted", sa.MetaData(), sa.Column("id", sa.Integer), parameters.needs())
    table.create(connection)
    told = ((1, None), (2, 0), (3, KNOWN), (4, KNOWN + 1))
    connection.execute(table.insert(), [{"id": id, "needs": needs} for id, needs in told])
    query = sa.select(table.c.id).where(parameters.are_known(table))
    assert set(connection.scalars(query)) == {1, 2, 3}
