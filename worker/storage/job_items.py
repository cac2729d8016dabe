"""Items of jobs, looked at. Functions of a connection: the caller owns the transaction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from worker.storage.jobs import PROMPT, WITH_PROMPT, ItemState, items


@dataclass(frozen=True)
class Item:
    """A row of ``job_items``. ``number`` counts from 1."""

    number: int
    prompt: str
    seed: int
    state: ItemState
    revision: int
    lease: str | None
    error_code: str | None
    error_message: str | None
    image_id: str | None


_ITEM_COLUMNS = [
    PROMPT if name == "prompt" else items.c[name] for name in Item.__dataclass_fields__
]


def items_of(
    connection: sa.Connection, job_id: str, states: Sequence[str], limit: int, after: int
) -> list[Item]:
    """Items in ``states`` (none: in any) by number, beyond number ``after``."""
    query = _items().where(items.c.job_id == job_id, items.c.number > after)
    if states:
        query = query.where(items.c.state.in_(states))
    rows = connection.execute(query.order_by(items.c.number).limit(limit)).mappings()
    return [Item(**row) for row in rows]


def changed_since(connection: sa.Connection, job_id: str, revision: int, limit: int) -> list[Item]:
    """Items that changed after ``revision``, in the order of their last change."""
    query = _items().where(items.c.job_id == job_id, items.c.revision > revision)
    rows = connection.execute(query.order_by(items.c.revision).limit(limit)).mappings()
    return [Item(**row) for row in rows]


def _items() -> sa.Select[Any]:
    return sa.select(*_ITEM_COLUMNS).select_from(WITH_PROMPT)


def leases_of(connection: sa.Connection, job_id: str) -> dict[str, int]:
    """Numbers of the items that are being drawn, by lease."""
    held = sa.select(items.c.lease, items.c.number).where(
        items.c.job_id == job_id, items.c.state == "running"
    )
    return {row[0]: row[1] for row in connection.execute(held)}
