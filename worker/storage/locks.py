"""Locks by name, of all who use the database."""

import sqlalchemy as sa


def lock(connection: sa.Connection, name: str) -> None:
    """Until the transaction ends nobody else has the lock of this name. In SQLite whoever writes
    has the whole database."""
    if connection.dialect.name != "sqlite":
        number = sa.func.hashtextextended(name, 0)
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))
