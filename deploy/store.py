"""The cell's database as commands see it."""

from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa

from deploy.cell import Cell, CellError
from worker.storage import migrations
from worker.storage.database import create_engine

T = TypeVar("T")

_TIMEOUT_S = 10.0


def migrate(cell: Cell) -> None:
    """Bring the database to this version of the kit, all of it or nothing; ``CellError``."""
    try:
        migrations.migrate(cell.layout.database_url)
    except migrations.ERRORS as error:
        raise CellError(
            f"the database {cell.layout.database} cannot be migrated: {_first_line(error)}\n"
            "Make room, or end what holds it; where it is damaged, restore a backup."
        ) from error


def run(cell: Cell, work: Callable[[sa.Connection], T]) -> T:
    """The result of ``work`` in one transaction; ``CellError`` where the database is away."""
    engine = create_engine(cell.layout.database_url, _TIMEOUT_S)
    try:
        with engine.connect() as connection, connection.begin():
            return work(connection)
    except sa.exc.IntegrityError:
        raise  # the caller's own: a name that is taken
    except sa.exc.SQLAlchemyError as error:
        where, why = cell.layout.database, _first_line(error)
        remedy = "try again" if where.exists() else "zimage up makes it"
        raise CellError(f"the database {where} cannot be used: {why}; {remedy}") from None
    finally:
        engine.dispose()


def _first_line(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]
