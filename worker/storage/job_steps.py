"""How far items of jobs are, as rows, where several hosts share the database: one row a worker that
draws some. Functions of a connection: the caller owns the transaction.

It is worth little and changes all the time, so PostgreSQL keeps no log of it: after a crash, and on
a standby that was promoted, the table is empty.
"""

import json

import sqlalchemy as sa

from worker.storage.schema import insert_or, metadata

FRESH_S = 60.0
"""Of an older row the worker is gone."""

job_steps = sa.Table(
    "job_steps",
    metadata,
    sa.Column("holder", sa.String(200), primary_key=True),
    sa.Column("steps", sa.Text, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)

Steps = dict[str, tuple[int, int]]
"""Steps done and steps in all, by lease."""


def tell(connection: sa.Connection, holder: str, steps: Steps, now: float) -> None:
    """What ``holder`` draws; nothing: it draws nothing."""
    if not steps:
        connection.execute(job_steps.delete().where(job_steps.c.holder == holder))
        return
    told = {"steps": json.dumps(steps), "at": now}
    row = insert_or(job_steps).values(holder=holder, **told)
    connection.execute(row.on_conflict_do_update(index_elements=["holder"], set_=told))


def of_others(connection: sa.Connection, holder: str, now: float) -> Steps:
    """What all but ``holder`` draw."""
    query = sa.select(job_steps.c.steps).where(
        job_steps.c.holder != holder, job_steps.c.at > now - FRESH_S
    )
    found: Steps = {}
    for text in connection.scalars(query):
        found |= {lease: (done, of) for lease, (done, of) in json.loads(text).items()}
    return found


def forget(connection: sa.Connection, now: float) -> None:
    """Delete rows of workers that are gone."""
    connection.execute(job_steps.delete().where(job_steps.c.at <= now - FRESH_S))
