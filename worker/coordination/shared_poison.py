"""``PoisonRequests`` over all hosts of a cluster.

A strike stays a file of its host, as without other hosts; one of its workers tells it to the
database within ``_TELL_S``, and writes those of other hosts into files here. A request that is
older than ``OLD_S`` has been somewhere else: of that one the database is asked before it is drawn.
While the database is away each host knows its own strikes alone.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

import sqlalchemy as sa

from worker import log
from worker.coordination.heartbeat import digest
from worker.coordination.poison_requests import PoisonRequests
from worker.errors import StoreAway
from worker.file_lock import try_lock
from worker.storage import strikes
from worker.storage.database import Database, clock
from worker.storage.outage import Outage
from worker.storage.strikes import StrikeRow

OLD_S = 1.0
_TELL_S = 0.2
_HEAR_S = 1.0
_ASKED_S = 0.5  # no request waits longer for a database
_OVERLAP_S = 10.0  # a transaction may end so long after it took its time
_FORGET_S = 600.0
_FOREIGN = "."
"""Between a host and the name that it gave a strike; no worker's name has one."""


class SharedPoison(PoisonRequests):
    """``run`` it as a task. ``host`` names this one."""

    def __init__(
        self,
        var_dir: Path,
        run_dir: Path,
        pool_dir: Path,
        name: str,
        ttl_s: float,
        *,
        host: str,
        database: Database,
    ) -> None:
        super().__init__(var_dir, run_dir, pool_dir, name, ttl_s)
        self._host = host
        self._database = database
        self._told: set[tuple[str, str]] = set()
        self._heard_until: float | None = None  # by the database's clock
        self._hear_at = self._forget_at = 0.0
        self._outage = Outage("be asked for strikes", "the database")

    def surely_clean(self, request_id: str, arrived_at: float) -> bool:
        """As without other hosts, where the request is new."""
        new = time.time() - arrived_at < OLD_S
        return new and super().surely_clean(request_id, arrived_at)

    async def ask_others(self, fingerprint: str) -> None:
        """Learn what other hosts know of a request."""
        known = digest(fingerprint).hex()

        def work(connection: sa.Connection) -> tuple[float, list[StrikeRow]]:
            now = clock(connection)
            return now, strikes.of_others(connection, self._host, now - self._ttl_s, known)

        with contextlib.suppress(StoreAway, TimeoutError):
            self._outage.require_turn()
            try:
                async with asyncio.timeout(_ASKED_S):
                    now, found = await self._database.read(work)
            except (StoreAway, TimeoutError) as error:
                raise self._outage.failed(str(error) or "it does not answer") from error
            self._outage.ended()
            if found:
                await asyncio.to_thread(self._note, found, now)

    # Telling and hearing, by one worker of the host

    async def run(self) -> None:
        """For ever."""
        with (self._run_dir / "strikes.lock").open("a", encoding="utf-8") as lock:
            while True:
                if try_lock(lock):
                    await self._try_to_exchange()
                await asyncio.sleep(_TELL_S)

    async def _try_to_exchange(self) -> None:
        try:
            await self._exchange()
        except StoreAway:
            self._told.clear()  # it may have been told or not
        except OSError as error:
            log.failure("strikes cannot be told to other hosts", error)

    async def _exchange(self) -> None:
        here = await asyncio.to_thread(lambda: list(self._own()))
        new = [each for each in here if each[:2] not in self._told]
        if new:
            await self._database.run(lambda c: strikes.publish(c, self._rows(new, clock(c))))
        self._told = {each[:2] for each in here}
        if time.monotonic() >= self._hear_at:
            await self._hear()
            self._hear_at = time.monotonic() + _HEAR_S
        if time.monotonic() >= self._forget_at:
            await self._database.run(lambda c: strikes.forget(c, clock(c) - 2 * self._ttl_s))
            self._forget_at = time.monotonic() + _FORGET_S

    def _own(self) -> Iterable[tuple[str, str, float]]:
        """Blocks. Fingerprint, name and age in seconds of this host's unexpired strikes."""
        for folder in self._folders():
            for path, age_s in self._unexpired(folder):
                if _FOREIGN not in path.name:
                    yield folder.name, path.name, age_s

    def _rows(self, new: Iterable[tuple[str, str, float]], now: float) -> list[StrikeRow]:
        return [StrikeRow(known, self._host, name, now - age_s) for known, name, age_s in new]

    async def _hear(self) -> None:
        def work(connection: sa.Connection) -> tuple[float, list[StrikeRow]]:
            now = clock(connection)
            since = now - self._ttl_s if self._heard_until is None else self._heard_until
            return now, strikes.of_others(connection, self._host, since)

        now, found = await self._database.read(work)
        if found:
            await asyncio.to_thread(self._note, found, now)
        self._heard_until = now - _OVERLAP_S

    def _note(self, found: Iterable[StrikeRow], now: float) -> None:
        """Blocks. Write strikes of other hosts into files here, as old as they are."""
        for row in found:
            path = self._folder / row.fingerprint / f"{row.host}{_FOREIGN}{row.name}"
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            made_at = time.time() - max(0.0, now - row.at)
            os.utime(path, (made_at, made_at))
