"""What an operator may want of a host. Functions of a connection: the caller owns the transaction.

Whoever takes a host out looks first whether another one draws, while nobody else decides: two
operators who take out the last two at once do not both succeed.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from worker.storage import hosts
from worker.storage.database import clock
from worker.storage.hosts import Host

SEEN_S = 10.0
"""A host that has written nothing for so long says nothing of the present; it writes every 2 s."""


LEAVING = "it ends"
"""Why a host is out that has said so itself; with its end it is listed no more."""


class Refused(Exception):
    """It is not done, and why not."""


def read(connection: sa.Connection) -> tuple[list[Host], float]:
    """All hosts, and the database's time."""
    return hosts.read_all(connection), clock(connection)


def drain(connection: sa.Connection, id: str, reason: str, *, force: bool = False) -> float:
    """Want host ``id`` out; since when, by the database's clock. ``force``: also the last."""
    host = _take_out(connection, id, "out", reason, force=force)
    return host.wanted_at


def undrain(connection: sa.Connection, id: str) -> float:
    """Want host ``id`` in again; since when."""
    hosts.lock_wishes(connection)
    host = _known(hosts.read_all(connection), id)
    if host.wanted == "removed":
        raise Refused(f"{id} was removed; it comes back by joining again")
    hosts.want(connection, id, "in", "", clock(connection))
    return _known(hosts.read_all(connection), id).wanted_at


def leave(connection: sa.Connection, id: str) -> None:
    """Host ``id``, also the last one, goes out by its own wish, until it ends or comes back. What
    operators want of it stays."""
    _change(connection, id, ("in", ""), "out", LEAVING)


def come_back(connection: sa.Connection, id: str) -> None:
    """Host ``id`` joins anew: where it was about to leave, or was removed, it is in again."""
    _change(connection, id, ("out", LEAVING), "in", "")
    host = hosts.find(connection, id)
    if host is not None and host.wanted == "removed":
        hosts.want(connection, id, "in", "", clock(connection))


def _change(
    connection: sa.Connection, id: str, before: tuple[str, str], wanted: hosts.Wanted, reason: str
) -> None:
    hosts.lock_wishes(connection)
    host = hosts.find(connection, id)
    if host is not None and (host.wanted, host.wanted_reason) == before:
        hosts.want(connection, id, wanted, reason, clock(connection))


def remove(connection: sa.Connection, id: str, reason: str, *, force: bool = False) -> float:
    """Host ``id`` belongs to the cluster no more; since when. ``force``: also the last."""
    return _take_out(connection, id, "removed", reason, force=force).wanted_at


def upgrade(connection: sa.Connection, id: str, version: str) -> float:
    """Want host ``id`` to take ``version`` now; since when. One host at a time does."""
    hosts.lock_wishes(connection)
    (rows, now) = read(connection)
    _known(rows, id)
    for other in rows:
        if (
            other.id != id
            and upgrade_of(other).get("state") == "under way"
            and _is_seen(other, now)
        ):
            raise Refused(f"{other.id} is on its way to {other.wanted_version}: wait for its end")
    hosts.want_version(connection, id, version, now)
    return now


def upgrade_of(host: Host) -> Mapping[str, Any]:
    """What it says of the upgrade that is wanted of it; empty until it does."""
    said: Mapping[str, Any] = host.facts.get("upgrade", {})
    return said if said.get("at") == host.wanted_version_at else {}


def _is_seen(host: Host, now: float) -> bool:
    return now - host.at <= SEEN_S


def draws(host: Host, now: float) -> bool:
    """Whether it takes requests at ``now``, as far as it has said."""
    here = host.wanted == "in" and host.lost_at is None and _is_seen(host, now)
    return here and host.draws and host.ready > 0


def _take_out(
    connection: sa.Connection, id: str, wanted: hosts.Wanted, reason: str, *, force: bool
) -> Host:
    hosts.lock_wishes(connection)
    (rows, now) = read(connection)
    host = _known(rows, id)
    if wanted == "out":
        _require_drainable(host)
    others = [other for other in rows if other.id != id and draws(other, now)]
    if draws(host, now) and not others and not force:
        raise Refused(
            f"{id} is the last host that draws: nobody would get a picture without it; let another "
            "one in first (zimage hosts says how they are), or repeat it with --force"
        )
    hosts.want(connection, id, wanted, reason or host.wanted_reason, now)
    return _known(hosts.read_all(connection), id)


def _require_drainable(host: Host) -> None:
    if host.wanted == "removed":
        raise Refused(f"{host.id} was removed; there is nothing to drain")
    if not host.draws:
        raise Refused(
            f"{host.id} is a front and draws nothing: take its address from clients instead"
        )


def _known(rows: Sequence[Host], id: str) -> Host:
    names = {host.id: host for host in rows}
    if id in names:
        return names[id]
    known = [host.id for host in rows if host.wanted != "removed"]
    near = difflib.get_close_matches(id, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known) or 'none'}"
    raise Refused(f"no host {id}; {hint}")
