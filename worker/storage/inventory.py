"""What a database holds: rows of each table, and the pictures that they name."""

from dataclasses import dataclass

import sqlalchemy as sa

from worker.storage import gallery

_SQLITES_OWN = ("images_search", "images_terms", "sqlite_")


@dataclass(frozen=True)
class Inventory:
    """``pictures``: names of their files."""

    tables: dict[str, int]
    pictures: frozenset[str]


def take(connection: sa.Connection) -> Inventory:
    """Of all tables that there are."""
    made = sa.inspect(connection).get_table_names()
    tables = {name: _rows(connection, name) for name in made if not name.startswith(_SQLITES_OWN)}
    return Inventory(tables, frozenset(gallery.names(connection)))


def _rows(connection: sa.Connection, name: str) -> int:
    return connection.scalar(sa.select(sa.func.count()).select_from(sa.table(name))) or 0
