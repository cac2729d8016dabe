"""The usage ledger: what each key used, by day, model and size.

``usage_entries`` has each picture and request once, so that nothing counts twice; ``usage_days``
has the sums, which are changed in the same transaction.
"""

import functools
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from worker.storage.schema import insert_or, metadata

entries = sa.Table(
    "usage_entries",
    metadata,
    sa.Column("request_id", sa.String(64), primary_key=True),
    sa.Column("image_index", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Double, nullable=False, index=True),
    sa.Column("outcome", sa.String(8), nullable=False),
)

days = sa.Table(
    "usage_days",
    metadata,
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("width", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("height", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("images", sa.BigInteger, nullable=False),
    sa.Column("megapixel_steps", sa.Double, nullable=False),
    sa.Column("gpu_seconds", sa.Double, nullable=False),
    sa.Column("queue_seconds", sa.Double, nullable=False),
    sa.Column("refusals", sa.BigInteger, nullable=False),
    sa.Column("failures", sa.BigInteger, nullable=False),
    sa.Index(None, "owner", "day"),
)


Outcome = Literal["image", "done", "failed", "refused"]
_RANK = {"image": 0, "refused": 0, "failed": 1, "done": 2}
"""Of one request on several workers the best counts: nginx sent it on until it was drawn."""

REQUEST = -1
"""``image_index`` of the entry of a request itself."""

_DAY = re.compile(r"\d{4}-\d\d-\d\d")

COUNTS = ("requests", "images", "refusals", "failures")
AMOUNTS = ("megapixel_steps", "gpu_seconds", "queue_seconds")
COLUMNS = ("requests", "images", *AMOUNTS, "refusals", "failures")

_PLACE = ("day", "owner", "model", "width", "height")
# Made once: building them takes longer than running them.
_ENTER = (
    insert_or(entries)
    .on_conflict_do_nothing()
    .returning(entries.c.request_id, entries.c.image_index)
)
_MORE = insert_or(days)
_COUNT = _MORE.on_conflict_do_update(
    index_elements=list(days.primary_key),
    set_={name: days.c[name] + _MORE.excluded[name] for name in COLUMNS},
)


@dataclass(frozen=True)
class Entry:
    """One picture that was handed out, or what became of one request (``image_index`` REQUEST).

    ``at``: the request's arrival, in seconds since the epoch, the same over its replays.
    """

    request_id: str
    image_index: int
    outcome: Outcome
    at: float
    owner: str
    model: str
    width: int
    height: int
    megapixel_steps: float = 0.0
    gpu_seconds: float = 0.0
    queue_seconds: float = 0.0

    @property
    def key(self) -> tuple[str, int]:
        """What is counted once."""
        return self.request_id, self.image_index

    @property
    def place(self) -> tuple[str, str, str, int, int]:
        """The row of ``days`` that it counts in."""
        return day_of(self.at), self.owner, self.model, self.width, self.height

    def totals(self) -> dict[str, float]:
        """What it adds to the columns of ``days``."""
        counted = {"image": "images", "failed": "failures", "refused": "refusals"}
        totals: dict[str, float] = {name: getattr(self, name) for name in AMOUNTS}
        if self.outcome in counted:
            totals[counted[self.outcome]] = 1
        if self.image_index == REQUEST:
            totals["requests"] = 1
        return totals


def day_of(at: float) -> str:
    """``at`` (seconds since the epoch) as a day of the ledger: UTC, ``yyyy-mm-dd``."""
    return _day_number(int(at // 86_400))


@functools.lru_cache(16)
def _day_number(days_since_epoch: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(days_since_epoch * 86_400))


def is_day(text: str) -> bool:
    """Whether ``text`` is a day of the calendar, as ``yyyy-mm-dd``."""
    if not _DAY.fullmatch(text):
        return False
    try:
        time.strptime(text, "%Y-%m-%d")
    except ValueError:
        return False
    return True


def apply(connection: sa.Connection, batch: Sequence[Entry]) -> None:
    """Enter ``batch``. What is there already changes nothing, whichever worker brings it again, and
    though several bring it at once."""
    known = _enter(connection, batch)
    totals: dict[tuple[str, str, str, int, int], dict[str, float]] = {}
    best: dict[tuple[str, int], Outcome] = {}
    for entry in batch:
        before = best.get(entry.key, known.get(entry.key))
        if before is not None and _RANK[entry.outcome] <= _RANK[before]:
            continue
        _add(totals, entry, before)
        best[entry.key] = entry.outcome
    _improve(connection, best, known)
    # In one order everywhere: two who wait for each other's rows would wait for ever.
    rows = [dict(zip(_PLACE, place, strict=True)) | totals[place] for place in sorted(totals)]
    if rows:
        connection.execute(_COUNT, rows)


def _enter(connection: sa.Connection, batch: Sequence[Entry]) -> dict[tuple[str, int], Outcome]:
    """Write those that are new; the outcomes of the others, which nobody else changes now."""
    rows = {entry.key: _row(entry) for entry in sorted(batch, key=lambda e: _RANK[e.outcome])}
    if not rows:
        return {}
    # All at once: a statement for each took a third of what a request costs.
    fresh = connection.execute(_ENTER, [rows[key] for key in sorted(rows)])
    there = rows.keys() - {(row.request_id, row.image_index) for row in fresh}
    if not there:
        return {}
    wanted = sa.select(entries.c.request_id, entries.c.image_index, entries.c.outcome)
    wanted = wanted.where(entries.c.request_id.in_({request_id for request_id, _ in there}))
    held = wanted.order_by(entries.c.request_id, entries.c.image_index).with_for_update()
    found = {(row.request_id, row.image_index): row.outcome for row in connection.execute(held)}
    return {key: found[key] for key in there & found.keys()}


def _add(
    totals: dict[tuple[str, str, str, int, int], dict[str, float]],
    entry: Entry,
    before: Outcome | None,
) -> None:
    amounts = totals.setdefault(entry.place, dict.fromkeys(COLUMNS, 0))
    for name, value in entry.totals().items():
        amounts[name] += value
    if before is not None:  # better than was thought: the request is counted already
        amounts["requests"] -= 1
        amounts["failures" if before == "failed" else "refusals"] -= 1


def _improve(
    connection: sa.Connection,
    best: Mapping[tuple[str, int], Outcome],
    known: Mapping[tuple[str, int], Outcome],
) -> None:
    for request_id, index in best.keys() & known.keys():
        same = (entries.c.request_id == request_id) & (entries.c.image_index == index)
        outcome = best[request_id, index]
        connection.execute(entries.update().where(same).values(outcome=outcome))


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "request_id": entry.request_id,
        "image_index": entry.image_index,
        "at": entry.at,
        "outcome": entry.outcome,
    }


By = Literal["key", "day", "model"]
_GROUPS = {"key": days.c.owner, "day": days.c.day, "model": days.c.model}


def report(
    connection: sa.Connection, by: By, since: str = "", until: str = "", owner: str | None = None
) -> list[dict[str, Any]]:
    """Sums from day ``since`` to day ``until``, both included, one row a group, in its order.

    ``owner``: of this one only. A row of ``by`` key has the key's id as ``key``.
    """
    group = _GROUPS[by]
    sums = (sa.func.sum(days.c[name]).label(name) for name in COLUMNS)
    wanted = sa.select(group.label(by), *sums)
    if since:
        wanted = wanted.where(days.c.day >= since)
    if until:
        wanted = wanted.where(days.c.day <= until)
    if owner is not None:
        wanted = wanted.where(days.c.owner == owner)
    rows = connection.execute(wanted.group_by(group).order_by(group)).mappings()
    return [_rounded(dict(row)) for row in rows]


def images_on(connection: sa.Connection, owner: str, day: str) -> int:
    """Pictures of ``owner`` on ``day``."""
    wanted = sa.select(sa.func.sum(days.c.images))
    return int(connection.scalar(wanted.where(days.c.owner == owner, days.c.day == day)) or 0)


def prune(connection: sa.Connection, entries_before: float, days_before: str) -> int:
    """Forget what is older: entries keep replays from counting twice, which is a matter of hours;
    days are what reports are made of. How many rows went."""
    gone = connection.execute(entries.delete().where(entries.c.at < entries_before)).rowcount
    return gone + connection.execute(days.delete().where(days.c.day < days_before)).rowcount


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    counts = {name: int(row[name]) for name in COUNTS}
    return row | counts | {name: round(float(row[name]), 3) for name in AMOUNTS}
