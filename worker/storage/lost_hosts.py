"""Which hosts are there besides one's own, and which nobody hears of any more: what those hold is
given to others."""

from collections.abc import Callable

import sqlalchemy as sa

from worker.storage.hosts import hosts

LOST_S = 10.0
"""A host that has written nothing for so long, and that no front has heard of for so long, holds
nothing any more. Where one of the two still hears of it, what it holds ends by time."""


def lost(now: float) -> sa.Select[tuple[str]]:
    """Their ids; ``now`` is by the database's clock."""
    before = now - LOST_S
    return sa.select(hosts.c.id).where(hosts.c.at <= before, hosts.c.lost_at <= before)


def is_first(connection: sa.Connection, host: str, now: float) -> bool:
    """Whether ``host`` does what one host of all is enough for: of those with a worker in the pool
    that wrote lately, it is the first by name. Where two think so for a moment, both do it."""
    there = hosts.c.ready > 0, hosts.c.at > now - LOST_S
    return bool(connection.scalar(sa.select(sa.func.min(hosts.c.id)).where(*there)) == host)


def others(
    host: str, pool: Callable[[], str | None] = lambda: None
) -> Callable[[sa.Connection, float], tuple[frozenset[str], int]]:
    """A look at all but ``host``: the ids of those that hold nothing any more, and how many workers
    draw on those that were heard of lately. ``pool``: of the model that these must have, where
    hosts have other ones."""
    other = hosts.c.id != host

    def look(connection: sa.Connection, now: float) -> tuple[frozenset[str], int]:
        there = [other, hosts.c.at > now - LOST_S]
        if (model := pool()) is not None:
            # Of a host of an older version nobody knows.
            there.append(hosts.c.facts.contains(f'"{model}"') | ~hosts.c.facts.contains('"pools"'))
        ready = sa.select(sa.func.sum(hosts.c.ready)).where(*there)
        gone: frozenset[str] = frozenset(connection.scalars(lost(now).where(other)))
        return gone, int(connection.scalar(ready) or 0)

    return look
