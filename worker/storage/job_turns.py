"""Whose jobs are drawn, and in which order. Functions of a connection: the caller owns the
transaction.
"""

import sqlalchemy as sa

from worker.storage import keys, parameters
from worker.storage.database import clock
from worker.storage.job_changes import open_of
from worker.storage.jobs import (
    ANY_MODEL,
    NEVER,
    PRIORITIES,
    DrawnModels,
    Job,
    holds,
    is_held,
    jobs,
    lock_rows,
    select_jobs,
    with_counts,
)
from worker.storage.schema import insert_or

FORESEEN = 20
"""Jobs of each turn that an end is predicted for."""


def foreseen(connection: sa.Connection, drawn: DrawnModels = ANY_MODEL) -> list[Job]:
    """Jobs of everybody that are being drawn: of each turn the ``FORESEEN`` oldest."""
    return [job for priority in PRIORITIES for job in _foreseen(connection, priority, drawn)]


def _foreseen(connection: sa.Connection, priority: int, drawn: DrawnModels) -> list[Job]:
    now, ahead = clock(connection), jobs.alias("ahead")
    line = good_turns(priority, now)
    last = (
        sa.select(ahead.c.created_at)
        .where(*in_line(ahead, priority, line.c.turn, drawn))
        .order_by(ahead.c.created_at)
        .offset(FORESEEN - 1)
        .limit(1)
        .scalar_subquery()
    )
    near = jobs.c.created_at <= sa.func.coalesce(last, NEVER)
    query = select_jobs(now).where(*in_line(jobs, priority, line.c.turn, drawn), near)
    return with_counts(connection, query.order_by(jobs.c.created_at))


def in_line(
    table: sa.FromClause, priority: int, turn: sa.ColumnElement[str], drawn: DrawnModels
) -> tuple[sa.ColumnElement[bool], ...]:
    """What an index finds: jobs of ``turn`` that are being drawn, and that this version can, with
    one of the ``drawn`` models."""
    found = table.c.state == "running", table.c.priority == priority, table.c.turn == turn
    return *found, parameters.are_known(table), drawn.of(table)


def good_turns(priority: int, now: float) -> sa.Subquery:
    """Each ``turn`` that has jobs being drawn and whose owner may draw.

    One step through the index for each, however many jobs it has. A key is the turn of its own
    jobs; without keys turns are addresses, whose owner is nobody's key and never held.
    """
    later, running = jobs.alias("later"), jobs.c.state == "running"
    first = sa.select(sa.func.min(jobs.c.turn).label("turn"))
    line = first.where(running, jobs.c.priority == priority).cte("line", recursive=True)
    following = sa.select(sa.func.min(later.c.turn)).where(
        later.c.state == "running", later.c.priority == priority, later.c.turn > line.c.turn
    )
    line = line.union_all(sa.select(following.scalar_subquery()).where(line.c.turn.is_not(None)))
    good = (keys.why_not(line.c.turn, now) == "") & ~is_held(line.c.turn, now)
    return sa.select(line.c.turn).where(line.c.turn.is_not(None), good).subquery("turns")


def hold(connection: sa.Connection, owner: str, until: float) -> None:
    """Lease nothing of ``owner`` until then."""
    held = insert_or(holds).values(owner=owner, until=until)
    connection.execute(held.on_conflict_do_update(index_elements=["owner"], set_={"until": until}))
    # So that event streams tell it.
    told = {"revision": jobs.c.revision + jobs.c.total + 1}
    lock_rows(connection, open_of(owner))
    connection.execute(jobs.update().where(open_of(owner)).values(told))


def let_draw(connection: sa.Connection, owner: str) -> None:
    """End the hold of ``owner``, if there is one: its limits were changed."""
    connection.execute(holds.delete().where(holds.c.owner == owner))
