"""``Quotas`` over all hosts that share a database; while it is away, over this host as without.

Nothing is asked for a key without limits. What a request holds is freed with its answer, and where
that fails by ``run``, or else by time.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from worker.coordination.lease_holder import host_of, is_dead
from worker.coordination.quota import DYING_S, REPLAY_AGE_S, Hold, Quotas, all_taken, day_is_used
from worker.errors import LimitReached, StoreAway
from worker.storage import key_limits
from worker.storage.database import Database, clock
from worker.storage.key_limits import SLOT_S, Asked
from worker.storage.keys import Key
from worker.storage.outage import Outage

T = TypeVar("T")

_MOMENT_S = 0.2  # between the end of an answer and that of its slot, which may be on another host
_LOOK_S = 0.05
_FREED_S = 0.5  # no answer waits longer for a database
_SWEEP_S = 3600.0


class SharedQuotas(Quotas):
    """``run`` it as a task."""

    def __init__(self, run_dir: Path, var_dir: Path, database: Database, holder: str) -> None:
        super().__init__(run_dir, var_dir)
        self._database = database
        self._holder = holder
        self._outage = Outage("count for keys", "the database")
        self._attempts: set[str] = set()
        """Those that have a slot, or may have."""
        self._tasks: set[asyncio.Task[Any]] = set()

    async def hold(self, key: Key | None, request_id: str, arrived_at: float, images: int) -> Hold:
        """Take a slot of ``key`` and count ``images``; raises ``LimitReached``."""
        if key is None or (key.concurrency is None and key.images_per_day is None):
            return Hold(self, key, request_id, images)
        held = SharedHold(self, key, request_id, images)
        taking = self.begin(self._take(held, key, arrived_at))
        try:
            await asyncio.shield(taking)
        except StoreAway:
            return await super().hold(key, request_id, arrived_at, images)
        except asyncio.CancelledError:
            # The client left, and it is taken all the same: nobody else would give it back.
            taking.add_done_callback(partial(_abandoned, held))
            raise
        return held

    async def today(self, key: Key) -> int | None:
        """Pictures of ``key`` today, those under way included; None where nothing is counted."""
        if not self._outage.why:
            # Nobody is counted elsewhere because this look failed.
            with contextlib.suppress(StoreAway):
                return await self._database.read(lambda c: key_limits.counted(c, key.id))
        return await super().today(key)

    async def run(self) -> None:
        """Hold on to what is held, for ever."""
        swept_at = 0.0
        while True:
            await asyncio.sleep(SLOT_S / 3)
            try:
                await self._ask(self._renew)
                if time.monotonic() - swept_at > _SWEEP_S:
                    await self._database.run(lambda c: key_limits.forget(c, clock(c)))
                    swept_at = time.monotonic()
            except StoreAway:
                continue  # told by the outage

    def _renew(self, connection: sa.Connection) -> None:
        attempts, now = list(self._attempts), clock(connection)
        key_limits.renew_slots(connection, self._holder, attempts, now)

    async def _take(self, held: "SharedHold", key: Key, arrived_at: float) -> None:
        try:
            if key.concurrency is not None:
                await self._shared_slot(held, key, key.concurrency, arrived_at)
            if key.images_per_day is not None:
                await self._shared_count(held, key, key.images_per_day)
        except StoreAway:
            self._attempts.discard(held.asked.attempt)  # should it have a slot: see _renew
            raise
        except LimitReached:
            await self.end(held)
            raise

    async def _shared_slot(
        self, held: "SharedHold", key: Key, most: int, arrived_at: float
    ) -> None:
        replayed = time.time() - arrived_at > REPLAY_AGE_S
        deadline = time.monotonic() + (DYING_S if replayed else _MOMENT_S)
        self._attempts.add(held.asked.attempt)
        held.has_slot = True  # even where nobody can say so
        while holders := await self._ask(partial(self._try_slot, held.asked, most)):
            dead = [holder for holder in holders if is_dead(holder)]
            if dead:
                await self._ask(lambda c, dead=dead: key_limits.free_slots_of(c, dead))  # type: ignore[misc]
            elif time.monotonic() >= deadline:
                held.has_slot = False
                raise all_taken(key, most)
            else:
                await asyncio.sleep(_LOOK_S)

    def _try_slot(self, asked: Asked, most: int, connection: sa.Connection) -> list[str]:
        holder = self._holder, host_of(self._holder)
        return key_limits.take_slot(connection, asked, *holder, most, clock(connection))

    async def _shared_count(self, held: "SharedHold", key: Key, most: int) -> None:
        asked = held.asked
        used = await self._ask(lambda c: key_limits.count(c, asked, most), at_once=True)
        if used is not None:
            raise day_is_used(key, most, used, asked.images)
        held.is_counted = True

    async def end(self, held: "SharedHold") -> None:
        """Free what ``held`` holds, and uncount what was not drawn."""
        self._attempts.discard(held.asked.attempt)
        if held.has_slot:
            await self._free(held.asked)
        if held.is_counted and held.drawn != held.images:
            drawn = held.drawn
            await self._in_time(lambda c: key_limits.settle(c, held.asked, drawn))

    async def _free(self, asked: Asked) -> None:
        await self._in_time(lambda c: key_limits.free_slot(c, asked.attempt))

    async def _in_time(self, work: Callable[[sa.Connection], None]) -> None:
        """Do ``work``; whoever waits for it goes on soon, whatever the database does."""
        doing = self.begin(self._try(work))
        await asyncio.wait([doing], timeout=_FREED_S)

    async def _try(self, work: Callable[[sa.Connection], None]) -> None:
        try:
            await self._ask(work)
        except StoreAway:
            return  # a slot ends without; what was counted stays counted

    async def _ask(self, work: Callable[[sa.Connection], T], *, at_once: bool = False) -> T:
        self._outage.require_turn()
        try:
            found = await self._database.count(work, at_once=at_once)
        except StoreAway as error:
            raise self._outage.failed(error.message) from error
        self._outage.ended()
        return found

    def begin(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """``work`` as a task that nobody needs to keep."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _abandoned(held: "SharedHold", taking: "asyncio.Task[None]") -> None:
    if not taking.cancelled() and taking.exception() is None:
        held.give_back()


class SharedHold(Hold):
    """What one request holds in the database."""

    def __init__(self, quotas: SharedQuotas, key: Key, request_id: str, images: int) -> None:
        super().__init__(quotas, key, request_id, images)
        self.asked = Asked(key.id, request_id[-64:], secrets.token_hex(16), images)
        self.has_slot = self.is_counted = False
        self._shared = quotas

    def give_back(self) -> "asyncio.Future[None] | None":
        """Free the slot, and uncount what was not drawn: in the future returned."""
        key, self.key = self.key, None
        return None if key is None else self._shared.begin(self._shared.end(self))
