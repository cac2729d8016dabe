"""Which hosts are there besides one's own, and which nobody hears of any more: what those hold is
given to others."""

from dataclasses import dataclass

import sqlalchemy as sa

from worker.storage.hosts import hosts

LOST_S = 10.0
"""A host that has written nothing for so long, and that no front has heard of for so long, holds
nothing any more. Where one of the two still hears of it, what it holds ends by time."""


def lost(now: float) -> sa.Select[tuple[str]]:
    """Their ids; ``now`` is by the database's clock."""
    before = now - LOST_S
    return sa.select(hosts.c.id).where(hosts.c.at <= before, hosts.c.lost_at <= before)


@dataclass(frozen=True)
class Others:
    """``lost`` are the ids of hosts that hold nothing any more; ``ready`` workers draw on all that
    were heard of lately."""

    lost: frozenset[str] = frozenset()
    ready: int = 0


def others(connection: sa.Connection, host: str, now: float) -> Others:
    """All but ``host``."""
    not_lost = (hosts.c.id != host) & (hosts.c.at > now - LOST_S)
    ready = sa.select(sa.func.sum(hosts.c.ready)).where(not_lost)
    gone = lost(now).where(hosts.c.id != host)
    return Others(frozenset(connection.scalars(gone)), connection.scalar(ready) or 0)
