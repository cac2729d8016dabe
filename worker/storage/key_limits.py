"""What the limits of keys count, where several hosts share the database: PostgreSQL. Functions of
a connection: the caller owns the transaction.

A request is counted by its id. ``attempt`` names one of the times that it was sent: who comes last
has taken it over, and only that one may give back what was counted.
"""

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from worker.storage.locks import lock
from worker.storage.lost_hosts import lost
from worker.storage.schema import metadata

SLOT_S = 30.0
"""Renewed three times as often."""
_DAY_S = 86_400
_KEPT_DAYS = 2

days = sa.Table(
    "quota_days",
    metadata,
    sa.Column("key_id", sa.String(64), primary_key=True),
    sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("images", sa.Integer, nullable=False),
)
"""Pictures of each day (UTC, counted from the epoch), those under way included."""

requests = sa.Table(
    "quota_requests",
    metadata,
    sa.Column("key_id", sa.String(64), primary_key=True),
    sa.Column("request_id", sa.String(64), primary_key=True),
    sa.Column("day", sa.Integer, nullable=False, index=True),
    sa.Column("images", sa.Integer, nullable=False),
    sa.Column("attempt", sa.String(32), nullable=False),
)

slots = sa.Table(
    "slots",
    metadata,
    sa.Column("attempt", sa.String(32), primary_key=True),
    sa.Column("key_id", sa.String(64), nullable=False, index=True),
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.Column("holder", sa.String(200), nullable=False, index=True),
    sa.Column("host", sa.String(32), nullable=False),
    sa.Column("ends_at", sa.Double, nullable=False),
)

_TODAY = "CAST(floor(extract(epoch FROM clock_timestamp()) / 86400) AS integer)"
"""By the database's clock: those of hosts may differ."""

_COUNT = sa.text(f"""
    WITH counted AS (
        INSERT INTO quota_days AS known (key_id, day, images)
        SELECT :key_id, {_TODAY}, :images WHERE :images <= :most AND NOT EXISTS (
            SELECT FROM quota_requests WHERE key_id = :key_id AND request_id = :request_id
        )
        ON CONFLICT (key_id, day) DO UPDATE SET images = known.images + :images
        WHERE known.images + :images <= :most
        RETURNING day
    )
    INSERT INTO quota_requests (key_id, request_id, day, images, attempt)
    SELECT :key_id, :request_id, day, :images, :attempt FROM counted
""").bindparams(
    *(sa.bindparam(name, type_=sa.String) for name in ("key_id", "request_id", "attempt")),
    *(sa.bindparam(name, type_=sa.Integer) for name in ("images", "most")),
)


@dataclass(frozen=True)
class Asked:
    """``images`` of a key for a request, for the ``attempt``-th time that it was sent."""

    key_id: str
    request_id: str
    attempt: str
    images: int


def count(connection: sa.Connection, asked: Asked, most: int) -> int | None:
    """Count what is asked for, unless the day's ``most`` were passed then; how many are counted
    already in that case, else None. One statement, unless it is a replay or refused; each must be
    a transaction by itself."""
    values = {**vars(asked), "most": most}
    # Twice: a first attempt may give back, or be refused, between two statements.
    for _ in range(2):
        try:
            if connection.execute(_COUNT, values).rowcount:
                return None
        except IntegrityError:  # it is sent twice at the same moment
            pass
        if _take_over(connection, asked):
            return None
    return counted(connection, asked.key_id)


def _take_over(connection: sa.Connection, asked: Asked) -> bool:
    """Whether the request was counted before."""
    known = requests.update().where(
        requests.c.key_id == asked.key_id, requests.c.request_id == asked.request_id
    )
    return bool(connection.execute(known.values(attempt=asked.attempt)).rowcount)


def counted(connection: sa.Connection, key_id: str) -> int:
    """Pictures of a key today."""
    day = sa.literal_column(_TODAY, sa.Integer)
    today = (days.c.key_id == key_id) & (days.c.day == day)
    return connection.scalar(sa.select(days.c.images).where(today)) or 0


def settle(connection: sa.Connection, asked: Asked, drawn: int) -> None:
    """Leave ``drawn`` of what was counted. A request that drew nothing is forgotten: should it be
    sent again, it counts again."""
    of_request = (
        (requests.c.key_id == asked.key_id)
        & (requests.c.request_id == asked.request_id)
        & (requests.c.attempt == asked.attempt)
    )
    # The day first, as whoever counts: no two wait for each other.
    day = sa.select(requests.c.day).where(of_request).scalar_subquery()
    of_day = (days.c.key_id == asked.key_id) & (days.c.day == day)
    if connection.execute(sa.select(days.c.day).where(of_day).with_for_update()).first() is None:
        return
    found = connection.execute(sa.select(requests).where(of_request).with_for_update()).first()
    if found is None:
        return
    less = days.c.images - (found.images - drawn)
    connection.execute(days.update().where(of_day).values(images=less))
    change = requests.update().values(images=drawn) if drawn else requests.delete()
    connection.execute(change.where(of_request))


# At a time


def take_slot(
    connection: sa.Connection, asked: Asked, holder: str, host: str, most: int, now: float
) -> list[str]:
    """Take one of the ``most`` slots of a key for process ``holder``: who has them, where none is
    free, else nobody. Slots whose time has passed, or whose host is lost, are free, and so is one
    that an earlier attempt at the same request has."""
    lock(connection, f"slots of {asked.key_id}")
    of_key = slots.c.key_id == asked.key_id
    free = (slots.c.ends_at <= now) | slots.c.host.in_(lost(now))
    free |= slots.c.request_id == asked.request_id
    connection.execute(slots.delete().where(of_key, free))
    holders = list(connection.scalars(sa.select(slots.c.holder).where(of_key)))
    if len(holders) >= most:
        return holders
    values = {name: getattr(asked, name) for name in ("attempt", "key_id", "request_id")}
    taken = {"holder": holder, "host": host, "ends_at": now + SLOT_S}
    connection.execute(slots.insert().values(values | taken))
    return []


def free_slot(connection: sa.Connection, attempt: str) -> None:
    """Let others have the slot of ``attempt``, if it has one."""
    connection.execute(slots.delete().where(slots.c.attempt == attempt))


def free_slots_of(connection: sa.Connection, dead: Collection[str]) -> None:
    """``dead`` processes hold nothing."""
    connection.execute(slots.delete().where(slots.c.holder.in_(dead)))


def renew_slots(
    connection: sa.Connection, holder: str, attempts: Collection[str], now: float
) -> None:
    """Hold the slots of ``attempts`` on, and let go of others that ``holder`` has: to let go of
    them then had failed."""
    held = slots.c.attempt.in_(attempts)
    connection.execute(slots.delete().where(slots.c.holder == holder, ~held))
    connection.execute(slots.update().where(held).values(ends_at=now + SLOT_S))


def forget(connection: sa.Connection, now: float) -> None:
    """Delete what was counted before yesterday, and slots that nobody holds."""
    before = int(now // _DAY_S) - _KEPT_DAYS + 1
    for table in (requests, days):
        connection.execute(table.delete().where(table.c.day < before))
    connection.execute(slots.delete().where(slots.c.ends_at <= now - SLOT_S))
