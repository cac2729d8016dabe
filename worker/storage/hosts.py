"""The hosts of a cluster as rows: what each says of itself, and what operators want of it.

Functions of a connection: the caller owns the transaction. A host writes its own columns and
operators theirs, so nobody overwrites what another has just said.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import sqlalchemy as sa

from worker.storage.locks import lock
from worker.storage.schema import insert_or, metadata

hosts = sa.Table(
    "hosts",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("address", sa.String(260), nullable=False),
    sa.Column("role", sa.String(8), nullable=False),
    sa.Column("version", sa.String(64), nullable=False),
    sa.Column("models", sa.Text, nullable=False),
    sa.Column("workers", sa.Integer, nullable=False),
    sa.Column("ready", sa.Integer, nullable=False),
    sa.Column("queued", sa.Integer, nullable=False),
    sa.Column("running", sa.Integer, nullable=False),
    sa.Column("wait_s", sa.Double, nullable=False),
    sa.Column("skew_s", sa.Double, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("joined_at", sa.Double, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("since", sa.Double, nullable=False),
    sa.Column("wanted", sa.String(16), nullable=False),
    sa.Column("wanted_reason", sa.String(200), nullable=False),
    sa.Column("wanted_at", sa.Double, nullable=False),
    sa.Column("wanted_version", sa.String(64), nullable=False, default=""),
    sa.Column("wanted_version_at", sa.Double, nullable=False, default=0.0),
    sa.Column("lost_at", sa.Double),
)
"""``workers`` are the configured ones, ``ready`` those in the pool. ``models`` and ``facts`` are
JSON; ``facts`` has what is for people and fronts. ``state`` is one of a worker's, of the host as a
whole, ``since`` when it has been in it. ``wanted`` is "in", "out" or "removed", since
``wanted_at``. ``wanted_version``: which version it is to take, since when; empty: whichever it has.
``at``: when the host wrote, by the database's clock, as all times here; ``skew_s``:
its own clock less that one. ``lost_at``: since when no front has heard of it."""

Role = Literal["host", "front", "both"]
Wanted = Literal["in", "out", "removed"]

MAX_REASON = 200
"""Characters of ``wanted_reason``."""

_JSON = {"models", "facts"}
_LOCK = "hosts"


@dataclass(frozen=True)
class HostReport:
    """What a host says of itself."""

    id: str
    address: str
    role: Role
    version: str
    models: tuple[str, ...]
    workers: int
    ready: int
    queued: int
    running: int
    wait_s: float
    skew_s: float
    state: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Host(HostReport):
    """A row of the table."""

    joined_at: float
    at: float
    since: float
    wanted: Wanted
    wanted_reason: str
    wanted_at: float
    wanted_version: str
    wanted_version_at: float
    lost_at: float | None

    @property
    def draws(self) -> bool:
        """Whether it has workers at all."""
        return self.role != "front"


def write(connection: sa.Connection, report: HostReport, now: float) -> None:
    """Enter what a host says, and nothing of what others say of it."""
    said = {name: _stored(name, value) for name, value in vars(report).items()}
    own = {**said, "at": now}
    first = {**own, "joined_at": now, "since": now, **_wish("in", "", now), "lost_at": None}
    insert = insert_or(hosts).values(first)
    same = hosts.c.state == insert.excluded.state
    since = sa.case((same, hosts.c.since), else_=insert.excluded.since)
    connection.execute(
        insert.on_conflict_do_update(index_elements=["id"], set_={**own, "since": since})
    )


def read_all(connection: sa.Connection) -> list[Host]:
    """Every host that ever wrote, by name; removed ones, too."""
    rows = connection.execute(sa.select(hosts).order_by(hosts.c.id)).mappings()
    return [_host(row) for row in rows]


def find(connection: sa.Connection, id: str) -> Host | None:
    """Host ``id``, if it ever wrote."""
    row = connection.execute(sa.select(hosts).where(hosts.c.id == id)).mappings().one_or_none()
    return None if row is None else _host(row)


def lock_wishes(connection: sa.Connection) -> None:
    """Until the transaction ends nobody else decides what is wanted: for whoever looks at all
    hosts first. Hosts go on writing."""
    lock(connection, _LOCK)


def want(connection: sa.Connection, id: str, wanted: Wanted, reason: str, now: float) -> bool:
    """Say what is wanted of host ``id``; False where there is none. Again, it changes the reason
    and not since when."""
    new = hosts.c.wanted != wanted
    at = sa.case((new, now), else_=hosts.c.wanted_at)
    wish = {**_wish(wanted, reason, now), "wanted_at": at}
    return connection.execute(hosts.update().where(hosts.c.id == id).values(wish)).rowcount == 1


def forget(connection: sa.Connection, id: str, reason: str) -> bool:
    """Delete the row of host ``id`` where it is wanted out for ``reason``; whether it was."""
    leaving = hosts.c.id == id, hosts.c.wanted == "out", hosts.c.wanted_reason == reason
    return connection.execute(hosts.delete().where(*leaving)).rowcount == 1


def want_version(connection: sa.Connection, id: str, version: str, now: float) -> bool:
    """Host ``id`` is to take ``version``, also where it has tried before; False where there is
    none."""
    wish = {"wanted_version": version, "wanted_version_at": now}
    return connection.execute(hosts.update().where(hosts.c.id == id).values(wish)).rowcount == 1


def set_lost(connection: sa.Connection, id: str, since: float | None) -> bool:
    """Fronts hear nothing of host ``id`` since ``since``, or they do (None); whether that is
    news. What was said first stays."""
    news = hosts.c.lost_at.is_not(None) if since is None else hosts.c.lost_at.is_(None)
    update = hosts.update().where(hosts.c.id == id, news).values(lost_at=since)
    return connection.execute(update).rowcount == 1


def _host(row: sa.RowMapping) -> Host:
    return Host(**{field.name: _read(field.name, row) for field in fields(Host)})


def _wish(wanted: Wanted, reason: str, now: float) -> dict[str, Any]:
    return {"wanted": wanted, "wanted_reason": reason[:MAX_REASON], "wanted_at": now}


def _stored(name: str, value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if name in _JSON else value


def _read(name: str, row: sa.RowMapping) -> Any:
    value = row[name]
    if name == "models":
        return tuple(json.loads(value))
    return json.loads(value) if name in _JSON else value
