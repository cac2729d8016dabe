"""This machine's place in its cluster: every two seconds it says how it is, and learns of others.

What it learns goes into a file, by which a front knows its hosts, and which stays as it is while
the database is away. What operators want of this host it passes on to the workers, as a flag.
"""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import sqlalchemy as sa

from deploy.cluster import exposition, hearing
from deploy.cluster.report import Cell, fresh, is_empty, report
from deploy.cluster.serving import Serving
from deploy.cluster.settings import MembershipSettings
from deploy.cluster.upgrading import Upgrades
from deploy.cluster.wishes import LEAVING
from worker import whole_file
from worker.errors import StoreAway
from worker.storage import hosts
from worker.storage.database import Database, clock
from worker.storage.hosts import Host, Wanted

BEAT_S = 2.0
_EMPTY_BEATS = 2
"""A request may be on its way from nginx to a worker when nothing is queued for a moment."""
_FOREIGN_ROWS = 2
"""In turn. One may be of this program itself, before it was restarted."""
_RETELL_S = 60.0

_log = logging.getLogger("membership")


class Membership:
    """``now``: this machine's clock."""

    def __init__(
        self,
        settings: MembershipSettings,
        database: Database,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._database = database
        self._now = now
        self._wanted: Wanted = _noted_wish(settings)
        self._shut_out = False
        self._upgrades = Upgrades(settings)
        self._serving = Serving(settings)
        self._upgrade: dict[str, Any] | None = None
        self._empty_beats = 0
        self._writer = secrets.token_hex(8)
        """Who wrote the row: of two machines with one name each finds the other's."""
        self._has_written = False
        self._foreign_rows = 0
        self._away_since: float | None = None
        self._told_at = 0.0

    async def run(self) -> None:
        """For ever."""
        self._pass_on()
        while True:
            began = time.monotonic()
            await self.beat()
            await asyncio.sleep(max(0.0, BEAT_S - (time.monotonic() - began)))

    async def end(self) -> None:
        """Where this host has said that it leaves, it is listed no more."""
        with suppress(StoreAway):
            host = self._settings.host
            await self._database.run(lambda connection: hosts.forget(connection, host, LEAVING))

    async def beat(self) -> bool:
        """Tell and learn once; False where the database is away, or the disk full."""
        try:
            serving = await asyncio.to_thread(self._serving.facts)
            exchange = self._exchange(self._read_cell(), serving)
            before, rows, at = await self._database.run(exchange)
            self._compare_writer(before)
            self._learn(rows, at)
            await self._tell_of_the_lost(rows, at)
        except (StoreAway, OSError) as error:
            self._complain(str(error))
            return False
        self._away_since = None
        return True

    # Telling

    def _exchange(
        self, cell: Cell | None, serving: Mapping[str, Any]
    ) -> Callable[[sa.Connection], tuple[Host | None, list[Host], float]]:
        """Write this host's row; what it was before, all rows, and the database's time."""
        self._empty_beats = self._empty_beats + 1 if self._shut_out and is_empty(cell) else 0
        is_drained = self._empty_beats >= _EMPTY_BEATS

        def work(connection: sa.Connection) -> tuple[Host | None, list[Host], float]:
            clock(connection)  # begins the transaction, which takes time of its own
            at, skew_s = _compare(self._now, lambda: clock(connection))
            wanted = self._wanted
            own = report(
                self._settings,
                cell,
                wanted=wanted,
                is_drained=is_drained,
                skew_s=skew_s,
                upgrade=self._upgrade,
            )
            before = hosts.find(connection, own.id)
            facts = {**own.facts, **self._own_facts(), **serving}
            hosts.write(connection, replace(own, facts=facts), at)
            return before, hosts.read_all(connection), at

        return work

    def _own_facts(self) -> dict[str, Any]:
        twin = {"twin": True} if self._foreign_rows >= _FOREIGN_ROWS else {}
        return {"writer": self._writer, **twin}

    def _compare_writer(self, before: Host | None) -> None:
        """Another machine may write under this host's name, such as a copy of this one's disk."""
        foreign = before is not None and before.facts.get("writer") != self._writer
        self._foreign_rows = self._foreign_rows + 1 if foreign and self._has_written else 0
        self._has_written = True
        if self._foreign_rows == _FOREIGN_ROWS:
            _log.error("another machine writes as %s, too", self._settings.host)

    def _read_cell(self) -> Cell | None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return fresh(json.loads(self._settings.cell_json.read_bytes()), self._now())
        return None

    async def _tell_of_the_lost(self, rows: Sequence[Host], at: float) -> None:
        if self._settings.role == "host":
            return
        changes = hearing.changes_of_lost(rows, at, self._settings.lost_s)
        if not changes:
            return

        def work(connection: sa.Connection) -> list[str]:
            # In one order: fronts say the same at the same time.
            told = sorted(changes.items())
            return [id for id, since in told if hosts.set_lost(connection, id, since)]

        for id in await self._database.run(work):
            _log.warning("host %s %s", id, "is heard again" if changes[id] is None else "is lost")

    # Learning

    def _learn(self, rows: Sequence[Host], at: float) -> None:
        own = next(host for host in rows if host.id == self._settings.host)
        if own.wanted != self._wanted:
            why = f": {own.wanted_reason}" if own.wanted_reason else ""
            _log.info("this host is wanted %s%s", own.wanted, why)
            self._wanted = own.wanted
            self._pass_on()
        self._upgrade = self._upgrades.follow(own)
        self._shut_out = own.wanted != "in" and hearing.is_shut_out(rows, own.id, at)
        self._write_down(rows, at)

    def _write_down(self, rows: Sequence[Host], at: float) -> None:
        settings = self._settings
        told = {"at": round(at, 3), "cluster": settings.cluster}
        whole_file.replace(
            settings.hosts_json, _json({**told, "hosts": [asdict(host) for host in rows]})
        )
        whole_file.replace(settings.metrics, exposition.metrics(rows, at, self._now()))
        whole_file.replace(settings.targets_json, _json(exposition.targets(rows, settings.host)))
        self._serving.write_down(rows)

    def _pass_on(self) -> None:
        """To the workers: while the flag is there, they begin nothing of jobs."""
        if self._wanted == "in":
            self._settings.host_drained_flag.unlink(missing_ok=True)
        else:
            self._settings.host_drained_flag.touch()

    def _complain(self, why: str) -> None:
        """Once a minute: it may last for hours."""
        now = time.monotonic()
        if self._away_since is None:
            self._away_since, self._told_at = now, -_RETELL_S
        if now - self._told_at >= _RETELL_S:
            self._told_at = now
            since_s = round(now - self._away_since)
            _log.warning("%s The list of hosts stays as it is, for %s s now.", why, since_s)


def _compare(mine: Callable[[], float], theirs: Callable[[], float]) -> tuple[float, float]:
    """Their time, and by how many seconds mine is ahead of it, as far as that is beyond doubt: an
    answer may take its time on either way."""
    before = mine()
    at = theirs()
    after = mine()
    ahead_s = (before + after) / 2 - at
    doubt_s = min(abs(ahead_s), max(0.0, after - before) / 2)
    return at, ahead_s - doubt_s if ahead_s > 0 else ahead_s + doubt_s


def _noted_wish(settings: MembershipSettings) -> Wanted:
    """What was wanted of this host when the database was last heard."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(settings.hosts_json.read_bytes())["hosts"]
        found = (host["wanted"] for host in known if host["id"] == settings.host)
        wanted: Wanted = next(found, "in")
        return wanted
    return "in"


def _json(told: object) -> str:
    return json.dumps(told, ensure_ascii=False)
