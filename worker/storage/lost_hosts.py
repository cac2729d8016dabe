"""Hosts that nobody hears of any more: what they hold is given to others."""

import sqlalchemy as sa

from worker.storage.hosts import hosts

LOST_S = 10.0
"""A host that has written nothing for so long, and that no front has heard of for so long, holds
nothing any more. Where one of the two still hears of it, what it holds ends by time."""


def lost(now: float) -> sa.Select[tuple[str]]:
    """Their ids; ``now`` is by the database's clock."""
    before = now - LOST_S
    return sa.select(hosts.c.id).where(hosts.c.at <= before, hosts.c.lost_at <= before)


def lost_hosts(connection: sa.Connection, now: float) -> frozenset[str]:
    """The ids of ``lost``."""
    return frozenset(connection.scalars(lost(now)))
