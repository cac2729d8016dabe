"""Who draws which item until when. Functions of a connection: the caller owns the transaction.

An item has one result because only its present lease can give it one. A lease ends with its
result, with its time, or with the process that holds it.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from worker.storage import parameters
from worker.storage.job_changes import change_items, next_revisions
from worker.storage.job_turns import good_turns, in_line
from worker.storage.jobs import (
    ANY_MODEL,
    NO_LEASE,
    PRIORITIES,
    PROMPT,
    WITH_PROMPT,
    DrawnModels,
    ItemState,
    items,
    jobs,
    lock_rows,
)
from worker.types import Parameters

LEASE_S = 30.0
"""Renewed three times as often: a worker that is merely slow keeps what it draws."""
_COUNTED = 200
_PASSED_OVER = 8
"""Of jobs that others have, at most: then it is waited for the first."""


@dataclass(frozen=True)
class Leased:
    """One item to draw."""

    lease: str
    job_id: str
    number: int
    owner: str
    turn: str
    priority: int
    prompt: str
    seed: int
    parameters: Parameters
    output_format: str
    quality: int | None
    tries: int
    traceparent: str | None = None
    image: str | None = None
    mask: str | None = None
    fit: str | None = None
    position: str | None = None


@dataclass(frozen=True)
class Offer:
    """A job that has items to draw: enough to say how many of them there is room for."""

    job_id: str
    owner: str
    turn: str
    priority: int
    parameters: Parameters
    created_at: float
    ready: int  # items that may be drawn now; counted up to a bound


@dataclass(frozen=True)
class LeaseSnapshot:
    """``offer`` is what could be leased next. ``holders`` have leases; ``late``: some of them have
    run out."""

    offer: Offer | None
    holders: frozenset[str]
    late: bool


def snapshot(
    connection: sa.Connection, now: float, drawn: DrawnModels = ANY_MODEL
) -> LeaseSnapshot:
    """Whether there is anything to do; reads only."""
    held = connection.execute(
        sa.select(items.c.holder, sa.func.min(items.c.lease_until))
        .where(items.c.lease.is_not(None))
        .group_by(items.c.holder)
    ).all()
    return LeaseSnapshot(
        _choose(connection, now, drawn),
        frozenset(holder for holder, _ in held),
        any(until < now for _, until in held),
    )


def held_by(connection: sa.Connection, holder: str) -> frozenset[str]:
    """Leases of ``holder``; reads only."""
    query = sa.select(items.c.lease).where(items.c.lease.is_not(None), items.c.holder == holder)
    return frozenset(connection.scalars(query))


def end(connection: sa.Connection, dead: Collection[str], now: float) -> int:
    """Give back what ``dead`` processes hold, and all whose time has passed; how many items."""
    gone = items.c.lease.is_not(None) & (items.c.holder.in_(dead) | (items.c.lease_until < now))
    return _give_back(connection, gone)


def take(
    connection: sa.Connection,
    holder: str,
    new_lease: Callable[[], str],
    room: Callable[[Offer], int],
    now: float,
    drawn: DrawnModels = ANY_MODEL,
) -> list[Leased]:
    """Lease items of one job, as many as ``room`` says: interactive before batch jobs, then the
    turn of whoever has the fewest under way in the whole cell, then the oldest job. One that
    others are taking from at this moment is passed over: they have made its turn a longer one."""
    offers = _in_turn(connection, now, drawn)
    if not offers:
        return []
    free = (offer for offer in offers[:_PASSED_OVER] if _lock(connection, offer, wait=False))
    locked = next(free, None)
    offer = locked or offers[0]
    count = room(_counted(connection, offer, now))
    # What was looked at may be others' by now: they had the job's row, or have it still.
    if count < 1 or not (locked or _lock(connection, offer, wait=True)):
        return []
    query = sa.select(items.c.number).where(*_ready(offer.job_id, now))
    numbers = connection.scalars(query.order_by(items.c.number).limit(count)).all()
    if not numbers:
        return []
    base = next_revisions(connection, offer.job_id)
    leases = {number: new_lease() for number in numbers}
    connection.execute(
        items.update()
        .where(items.c.job_id == offer.job_id, items.c.number == sa.bindparam("of"))
        .values(
            state="running",
            revision=base + items.c.number,
            lease=sa.bindparam("new_lease"),
            holder=holder,
            lease_until=now + LEASE_S,
        ),
        [{"of": number, "new_lease": lease} for number, lease in leases.items()],
    )
    return _leased(connection, list(leases.values()))


def release(connection: sa.Connection, given_up: Collection[str]) -> None:
    """End leases without a result."""
    _give_back(connection, items.c.lease.in_(given_up))


def renew(connection: sa.Connection, leases: Collection[str], now: float) -> None:
    """Hold ``leases`` on, if they are still held."""
    held = items.c.lease.in_(leases)
    lock_rows(connection, jobs.c.id.in_(_jobs_of(held)))
    connection.execute(items.update().where(held).values(lease_until=now + LEASE_S))


def finish(connection: sa.Connection, item: Leased, image_id: str, now: float) -> bool:
    """The item has its picture; False where the lease had ended, and the picture with it."""
    done = {"state": "done", "image_id": image_id, "error_code": None, "error_message": None}
    return _end_lease(connection, item, done, now) or _is_finished(connection, item, image_id)


def fail(connection: sa.Connection, item: Leased, code: str, message: str, now: float) -> bool:
    """The item gets no picture."""
    values = {"state": "failed", "error_code": code, "error_message": message}
    return _end_lease(connection, item, values, now)


def requeue(
    connection: sa.Connection,
    item: Leased,
    *,
    not_before: float = 0.0,
    tried: bool = False,
    why: tuple[str, str] = ("", ""),
) -> bool:
    """Somebody else may draw it, from ``not_before`` on. ``tried``: it counts as an attempt.
    ``why``: code and message of what holds it up."""
    code, message = why
    values = {
        "state": "waiting",
        "ready_at": not_before,
        "tries": item.tries + tried,
        "error_code": code or None,
        "error_message": message or None,
    }
    return _end_lease(connection, item, values, 0.0)


def pause_job(connection: sa.Connection, job_id: str) -> None:
    """Stop a job that does harm."""
    running = (jobs.c.id == job_id) & (jobs.c.state == "running")
    connection.execute(jobs.update().where(running).values(state="paused"))
    change_items(connection, job_id, items.c.state == "running", state="waiting", **NO_LEASE)


def refuse_job(connection: sa.Connection, job_id: str, code: str, message: str, now: float) -> None:
    """What waits of a job gets no picture: nothing of it may be drawn."""
    values = {"state": "failed", "error_code": code, "error_message": message}
    change_items(connection, job_id, items.c.state == "waiting", **values)
    _settle(connection, job_id, now)


def failures(connection: sa.Connection, job_id: str, code: str) -> int:
    """Items of the job that failed with ``code``."""
    query = sa.select(sa.func.count()).where(
        items.c.job_id == job_id, items.c.state == "failed", items.c.error_code == code
    )
    return connection.scalar(query) or 0


def _give_back(connection: sa.Connection, which: sa.ColumnElement[bool]) -> int:
    changed = (
        change_items(connection, job_id, which, state="waiting", **NO_LEASE)
        for job_id in lock_rows(connection, jobs.c.id.in_(_jobs_of(which)))
    )
    return sum(changed)


def _jobs_of(which: sa.ColumnElement[bool]) -> sa.Select[tuple[str]]:
    return sa.select(items.c.job_id).where(which)


def _end_lease(connection: sa.Connection, item: Leased, values: dict[str, Any], now: float) -> bool:
    held = items.c.lease == item.lease
    if connection.execute(sa.select(items.c.number).where(held)).first() is None:
        return False
    if not change_items(connection, item.job_id, held, **values, **NO_LEASE):
        return False
    if values["state"] != "waiting":
        _settle(connection, item.job_id, now)
    return True


def _is_finished(connection: sa.Connection, item: Leased, image_id: str) -> bool:
    """Whether an earlier attempt at this very ``finish`` was committed after all."""
    query = sa.select(items.c.image_id).where(
        items.c.job_id == item.job_id, items.c.number == item.number
    )
    return bool(connection.scalar(query) == image_id)


def _settle(connection: sa.Connection, job_id: str, now: float) -> None:
    """A job none of whose items is left is over."""
    if _has(connection, job_id, "waiting", "running"):
        return
    state = "failed" if _has(connection, job_id, "failed") else "completed"
    connection.execute(
        jobs.update().where(jobs.c.id == job_id).values(state=state, finished_at=now)
    )


def _has(connection: sa.Connection, job_id: str, *states: ItemState) -> bool:
    """Whether any item is in one of ``states``: found by the index, however large the job."""
    found = sa.exists().where(items.c.job_id == job_id, items.c.state.in_(states))
    return bool(connection.scalar(sa.select(found)))


def _ready(job_id: Any, now: float) -> tuple[sa.ColumnElement[bool], ...]:
    due = sa.func.coalesce(items.c.ready_at, items.c.not_before) <= now
    return items.c.job_id == job_id, items.c.state == "waiting", due


def _choose(connection: sa.Connection, now: float, drawn: DrawnModels) -> Offer | None:
    offers = _in_turn(connection, now, drawn)
    return _counted(connection, offers[0], now) if offers else None


def _in_turn(connection: sa.Connection, now: float, drawn: DrawnModels) -> list[Offer]:
    """Looks at the first job of each turn alone, so a turn's thousands cost nobody anything."""
    for priority in PRIORITIES:
        offers = _first_of_each_turn(connection, priority, now, drawn)
        if offers:
            under_way = _under_way(connection)
            return sorted(offers, key=lambda o: (under_way.get(o.turn, 0), o.created_at))
    return []


def _counted(connection: sa.Connection, offer: Offer, now: float) -> Offer:
    return replace(offer, ready=_count_ready(connection, offer.job_id, now))


def _lock(connection: sa.Connection, offer: Offer, *, wait: bool) -> bool:
    """Whether its job is drawn and nobody else's until the transaction ends."""
    drawn = (jobs.c.id == offer.job_id) & (jobs.c.state == "running")
    return bool(lock_rows(connection, drawn, wait=wait))


def _first_of_each_turn(
    connection: sa.Connection, priority: int, now: float, drawn: DrawnModels
) -> list[Offer]:
    """The oldest job that has something to draw, of each turn."""
    line, oldest = good_turns(priority, now), jobs.alias("oldest")
    first = (
        sa.select(oldest.c.id)
        .where(
            *in_line(oldest, priority, line.c.turn, drawn),
            sa.select(items.c.number).where(*_ready(oldest.c.id, now)).exists(),
        )
        .order_by(oldest.c.created_at)
        .limit(1)
        .scalar_subquery()
    )
    names = [name for name in Offer.__dataclass_fields__ if name in jobs.c]
    own = [jobs.c[name] for name in names]
    query = sa.select(jobs.c.id.label("job_id"), *own, *parameters.columns_of(jobs))
    rows = connection.execute(query.select_from(line.join(jobs, jobs.c.id == first))).mappings()
    return [Offer(**parameters.gathered(row), ready=0) for row in rows]


def _count_ready(connection: sa.Connection, job_id: str, now: float) -> int:
    ready = sa.select(items.c.number).where(*_ready(job_id, now)).limit(_COUNTED).subquery()
    return connection.scalar(sa.select(sa.func.count()).select_from(ready)) or 0


def _under_way(connection: sa.Connection) -> dict[str, int]:
    """How many items of each turn are being drawn in the cell."""
    query = sa.select(jobs.c.turn, sa.func.count()).select_from(items.join(jobs))
    rows = connection.execute(query.where(items.c.lease.is_not(None)).group_by(jobs.c.turn))
    return {row[0]: row[1] for row in rows}


def _leased(connection: sa.Connection, leases: Sequence[str]) -> list[Leased]:
    known: dict[str, sa.ColumnElement[Any]] = {**jobs.c, **items.c, "prompt": PROMPT}
    own = [known[name] for name in Leased.__dataclass_fields__ if name in known]
    held = WITH_PROMPT.join(jobs, jobs.c.id == items.c.job_id)
    query = sa.select(*own, *parameters.columns_of(jobs)).select_from(held)
    rows = connection.execute(query.where(items.c.lease.in_(leases)).order_by(items.c.number))
    return [Leased(**parameters.gathered(row)) for row in rows.mappings()]
