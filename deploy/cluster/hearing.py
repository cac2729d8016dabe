"""What the fronts of a cluster hear of its hosts, all fronts together. Pure.

A front alone may be cut off: a host is lost where none of them hears it, and one that hears nobody
says nothing of others.
"""

from collections.abc import Sequence
from typing import Any

from worker.storage.hosts import Host

FRESH_S = 10.0
"""What a front has written is believed for so long; it writes every 2 s."""


def changes_of_lost(rows: Sequence[Host], now: float, lost_s: float) -> dict[str, float | None]:
    """By host, what its ``lost_at`` should be and is not; ``now`` is by the database's clock."""
    ears = [hears for hears in _ears(rows, now) if _hears_anybody(hears, lost_s)]
    changes: dict[str, float | None] = {}
    for host in rows:
        silences = [hears[host.id]["silent_s"] for hears in ears if host.id in hears]
        if not silences:
            continue  # nobody knows
        silent_s = min(silences)
        is_lost = silent_s >= lost_s
        if is_lost is (host.lost_at is None):
            changes[host.id] = now - silent_s if is_lost else None
    return changes


def is_shut_out(rows: Sequence[Host], id: str, now: float) -> bool:
    """Whether no front sends requests to host ``id``, as far as fronts have said."""
    return not any(hears[id]["open"] for hears in _ears(rows, now) if id in hears)


def _ears(rows: Sequence[Host], now: float) -> list[dict[str, Any]]:
    """What each front that writes hears."""
    fronts = [host for host in rows if host.role != "host" and now - host.at <= FRESH_S]
    return [front.facts["hears"] for front in fronts if "hears" in front.facts]


def _hears_anybody(hears: dict[str, Any], lost_s: float) -> bool:
    return any(host["silent_s"] < lost_s for host in hears.values())
