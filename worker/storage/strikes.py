"""Strikes of requests as rows, where several hosts share the database. Functions of a connection:
the caller owns the transaction. What a strike is: ``worker.coordination.strikes``."""

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from worker.storage.schema import insert_or, metadata

strikes = sa.Table(
    "strikes",
    metadata,
    sa.Column("fingerprint", sa.String(32), primary_key=True),
    sa.Column("host", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("at", sa.Double, nullable=False, index=True),
)


@dataclass(frozen=True)
class StrikeRow:
    """``name`` tells the death, on ``host``; ``at`` is by the database's clock."""

    fingerprint: str
    host: str
    name: str
    at: float


def publish(connection: sa.Connection, rows: Collection[StrikeRow]) -> None:
    """Tell other hosts. What is told already changes nothing."""
    if rows:
        values = [vars(row) for row in rows]
        connection.execute(insert_or(strikes).on_conflict_do_nothing(), values)


def of_others(
    connection: sa.Connection, host: str, since: float, fingerprint: str | None = None
) -> list[StrikeRow]:
    """Those that other hosts have told since then, of one request or of all."""
    query = sa.select(strikes).where(strikes.c.host != host, strikes.c.at > since)
    if fingerprint is not None:
        query = query.where(strikes.c.fingerprint == fingerprint)
    return [StrikeRow(**row) for row in connection.execute(query).mappings()]


def forget(connection: sa.Connection, before: float) -> None:
    """Delete what was told ``before``."""
    connection.execute(strikes.delete().where(strikes.c.at < before))
