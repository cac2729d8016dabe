"""What is done to jobs as a whole. Functions of a connection: the caller owns the transaction.

Each may be repeated: nginx replays what a dying worker did not answer. Every change of an item
takes the next numbers of its job's ``revision``, so whoever knows the revision that it saw last can
ask for what changed since.
"""

from typing import Any

import sqlalchemy as sa

from worker.errors import Conflict
from worker.storage.jobs import (
    AT_ONCE,
    MAX_ITEMS,
    NO_LEASE,
    OPEN,
    Job,
    Share,
    items,
    jobs,
    lock_rows,
    lock_share,
    prompts,
    require_share,
)


def pause(connection: sa.Connection, job: Job) -> None:
    """Stop drawing; what is under way starts again when the job goes on."""
    if job.state == "paused":
        return
    if job.over:
        raise _is_over(job, "paused")
    _set(connection, job, state="paused")
    change_items(connection, job.id, items.c.state == "running", state="waiting", **NO_LEASE)


def resume(connection: sa.Connection, job: Job) -> None:
    """Go on drawing."""
    if job.state == "running":
        return
    if job.over:
        raise _is_over(job, "resumed")
    _set(connection, job, state="running")


def cancel(connection: sa.Connection, job: Job, now: float) -> None:
    """Draw no more; what is done stays."""
    if job.over:
        return
    _set(connection, job, state="cancelled", finished_at=now)
    change_items(connection, job.id, items.c.state.in_(OPEN), state="cancelled", **NO_LEASE)


def stop(connection: sa.Connection, owner: str) -> None:
    """Take back what is under way of the jobs of ``owner``, whose key has changed: it is drawn
    again when, and if, the key is good."""
    for job_id in lock_rows(connection, open_of(owner)):
        change_items(connection, job_id, items.c.state == "running", state="waiting", **NO_LEASE)


def cancel_all(connection: sa.Connection, owner: str, why: str, now: float) -> int:
    """Cancel the jobs of ``owner``, whose key is deleted; how many. Items say ``why``."""
    found = lock_rows(connection, open_of(owner))
    for job_id in found:
        said = {"error_code": "key_deleted", "error_message": why}
        change_items(
            connection, job_id, items.c.state.in_(OPEN), state="cancelled", **NO_LEASE, **said
        )
    ended = {"state": "cancelled", "finished_at": now}
    connection.execute(jobs.update().where(open_of(owner)).values(ended))
    return len(found)


def retry(connection: sa.Connection, job: Job, share: Share, *, paused: bool = False) -> None:
    """Draw failed and cancelled items after all; raises ``LimitReached`` where the owner has too
    much open. ``paused``: a job that was over waits until it is resumed."""
    lock_share(connection, job.owner)
    again = job.counts["failed"] + job.counts["cancelled"]
    if not again:
        return
    if job.over:
        require_share(connection, job.owner, share, images=again, stored_bytes=0)
    change_items(
        connection,
        job.id,
        items.c.state.in_(("failed", "cancelled")),
        state="waiting",
        tries=0,
        ready_at=0.0,
        error_code=None,
        error_message=None,
    )
    if job.over:
        _set(connection, job, state="paused" if paused else "running", finished_at=None)


def delete(connection: sa.Connection, *job_ids: str) -> None:
    """Forget jobs; their pictures stay."""
    lock_rows(connection, jobs.c.id.in_(job_ids))
    for table, column in ((items, items.c.job_id), (prompts, prompts.c.job_id), (jobs, jobs.c.id)):
        connection.execute(table.delete().where(column.in_(job_ids)))


def forget_finished(connection: sa.Connection, before: float) -> int:
    """Delete jobs that finished ``before``; how many. One transaction takes a bounded number of
    items: ask again until there are none."""
    old = sa.select(jobs.c.id, jobs.c.total).where(jobs.c.finished_at < before)
    found: list[str] = []
    rows = 0
    for job_id, total in connection.execute(old.order_by(jobs.c.finished_at).limit(AT_ONCE)):
        if found and rows + total > MAX_ITEMS:
            break
        found.append(job_id)
        rows += total
    delete(connection, *found)
    return len(found)


def lower_priority(connection: sa.Connection, owner: str, priority: int) -> None:
    """Open jobs of ``owner`` go no sooner than ``priority``."""
    sooner = open_of(owner) & (jobs.c.priority < priority)
    lock_rows(connection, sooner)
    connection.execute(jobs.update().where(sooner).values(priority=priority))


def open_of(owner: str) -> sa.ColumnElement[bool]:
    """Jobs of ``owner`` that are not over."""
    return (jobs.c.owner == owner) & jobs.c.state.in_(("running", "paused"))


def change_items(
    connection: sa.Connection, job_id: str, which: sa.ColumnElement[bool], **values: Any
) -> int:
    """Set ``values`` in the items of a job that are ``which``, with new revisions; how many that
    are, now that nobody else changes them."""
    base = next_revisions(connection, job_id)
    update = items.update().where(items.c.job_id == job_id, which)
    return connection.execute(update.values(revision=base + items.c.number, **values)).rowcount


def next_revisions(connection: sa.Connection, job_id: str) -> int:
    """Take a revision for each item of the job, item n's being what is returned plus n, and the
    one above all of them for the job. Of a job that was deleted meanwhile there is nothing to
    take."""
    taken = (
        jobs.update()
        .where(jobs.c.id == job_id)
        .values(revision=jobs.c.revision + jobs.c.total + 1)
        .returning(jobs.c.revision - jobs.c.total - 1)
    )
    return int(connection.execute(taken).scalar() or 0)


def _set(connection: sa.Connection, job: Job, **values: Any) -> None:
    # A revision for the job alone would do; this way there is one rule.
    next_revisions(connection, job.id)
    connection.execute(jobs.update().where(jobs.c.id == job.id).values(**values))


def _is_over(job: Job, verb: str) -> Conflict:
    return Conflict(f"{job.id} is {job.state} and cannot be {verb}: make a new job.")
