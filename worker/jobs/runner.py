"""Keeps the engine supplied with items of jobs, and jobs with results.

Whatever happens to this process, the rows are right: an item is leased before it is drawn, its
picture is safe on the disk before its row says so, and only the present lease may say it.
"""

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from worker import log
from worker.coordination import host_drain
from worker.coordination.change_notifier import ChangeNotifier
from worker.coordination.lease_holder import Others, gone, this_process
from worker.engine import Engine
from worker.engine.queue import expected_rows
from worker.errors import (
    DrawingFailed,
    HandedBack,
    LimitReached,
    Refused,
    StorageFailed,
    StoreAway,
    TooSlow,
    Unavailable,
    ZimageError,
)
from worker.generation.components import Components
from worker.generation.request import priority_of
from worker.jobs.drawing import Held, Tools, draw, require_allowed
from worker.storage import gallery, job_changes, job_turns, keys, leases, usage
from worker.storage.database import Database, clock, give_space_back
from worker.storage.gallery import StoredImage
from worker.storage.jobs import DrawnModels
from worker.storage.keys import Key
from worker.storage.leases import LEASE_S, Leased, LeaseSnapshot, Offer

T = TypeVar("T")

LOOK_S = 1.0
"""A change that the notifier did not tell is seen this much later."""
IDLE_LOOK_S = 4.0
IDLE_AFTER_S = 10.0
"""The same, where no worker has had an item to draw for ``IDLE_AFTER_S``: each look takes some
milliseconds of the processor."""
MAX_TRIES = 3
HARMFUL = 3
"""A job of which so many items end workers, or are declined by the pipeline, is paused."""
_BUSY_S = 1.0
_NO_ROOM_S = 15.0
_PATIENCE_S = 5.0  # between attempts to tell a database that is away
_SWEEP_S = 3600.0
_LOOK_AT_LIMITS_S = 300.0  # what was counted and not drawn is given back
_DAY_S = 86_400.0
_NOTIFIER = "jobs.changed"

Ready = Callable[[], Components | None]
"""What to draw with, where this worker takes work now."""


class Runner:
    """``run`` it as a task; ``close`` gives back what it holds."""

    def __init__(
        self,
        database: Database,
        tools: Tools,
        ready: Ready,
        worker: str,
        run_dir: Path,
        keep_s: float,
        host: str,
        others: Others,
        drawn: Callable[[], DrawnModels],
        workers: Callable[[], int],
    ) -> None:
        """``drawn``: the models whose jobs this worker takes; ``workers``: how many of this host
        do, itself included, which blocks."""
        self._drawn = drawn
        self._workers = workers
        self._database = database
        self._others = others
        self._tools = tools
        self._ready = ready
        self._run_dir = run_dir
        self._keep_s = keep_s
        self._holder = this_process(worker, host)
        self._notifier = ChangeNotifier(run_dir / _NOTIFIER)
        self._elsewhere = 0  # workers
        self._held: dict[str, Held] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewed_at = 0.0
        self._swept_at = 0.0
        self._trouble = ""
        self._closed = False
        self._busy_at = time.monotonic()

    @property
    def held(self) -> int:
        """Items in this worker's hands."""
        return len(self._held)

    def listen(self) -> ChangeNotifier:
        """A notifier that tells whenever a job has changed."""
        return ChangeNotifier(self._run_dir / _NOTIFIER)

    def notify(self) -> None:
        """Tell all workers and listeners that a job has changed."""
        self._notifier.notify()

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                while await self._round():
                    pass
                self._trouble = ""
            except ZimageError as error:
                self._complain(error)
            except Exception as error:
                log.failure("jobs are held up", error)
            await self._notifier.wait(self._look_s())

    def _look_s(self) -> float:
        return IDLE_LOOK_S if time.monotonic() - self._busy_at > IDLE_AFTER_S else LOOK_S

    async def settled(self) -> None:
        """Return when nothing is in this worker's hands."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self, timeout_s: float) -> None:
        """Give back what is not done."""
        self._closed = True
        held = list(self._held)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if held:
            with contextlib.suppress(StoreAway, TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._database.run(lambda c: leases.release(c, held))
            self._notifier.notify()

    def _complain(self, error: ZimageError) -> None:
        if self._trouble != error.code:  # once: it may last for hours
            self._trouble = error.code
            log.event("jobs wait", why=error.message)

    # Leases

    async def _round(self) -> bool:
        """Do what is due; whether there may be more to do at once."""
        drawn = self._drawn()
        now, snapshot, mine, lost = await self._database.read(lambda c: self._look(c, drawn))
        await self._compare(mine)
        await self._hold_on(now)
        if snapshot.offer is not None or snapshot.holders:
            self._busy_at = time.monotonic()
        dead = gone(snapshot.holders, lost)
        if dead or snapshot.late:
            await self._end(dead, now)
            return True
        return snapshot.offer is not None and await self._take(snapshot.offer, now, drawn)

    def _look(
        self, connection: sa.Connection, drawn: DrawnModels
    ) -> tuple[float, LeaseSnapshot, frozenset[str], frozenset[str]]:
        now = clock(connection)
        mine = leases.held_by(connection, self._holder)
        lost, self._elsewhere = self._others(connection, now)
        return now, leases.snapshot(connection, now, drawn), mine, lost

    async def _hold_on(self, now: float) -> None:
        if self._held and now - self._renewed_at > LEASE_S / 3:
            await self._database.run(lambda c: leases.renew(c, list(self._held), now))
            self._renewed_at = now
        if now - self._swept_at > _SWEEP_S:
            old = now - self._keep_s
            while await self._database.run(lambda c: job_changes.forget_finished(c, old)):
                pass
            while await self._database.run(give_space_back):
                pass
            self._swept_at = now

    async def _compare(self, mine: frozenset[str]) -> None:
        """Leases that others have ended are revoked; leases that nobody here knows, because their
        transaction was thought to have failed, are given back."""
        for lease in self._held.keys() - mine:
            self._held[lease].revoke()
        unknown = mine - self._held.keys()
        if unknown:
            await self._database.run(lambda c: leases.release(c, unknown))
            self._notifier.notify()

    async def _end(self, dead: list[str], now: float) -> None:
        ended = await self._database.run(lambda c: leases.end(c, dead, now))
        if ended:
            log.event("leases of others ended", items=ended, dead=len(dead))
            self._notifier.notify()

    async def _take(self, offer: Offer, now: float, drawn: DrawnModels) -> bool:
        """Lease some more, if there is room; whether anything was leased."""
        components = self._ready()
        if components is None or self._closed or host_drain.flag(self._run_dir).exists():
            return False
        engine = components.engine
        workers = self._elsewhere + max(1, await asyncio.to_thread(self._workers))
        if not self._room(engine, workers, offer):
            return False
        if not await self._allowed(offer):
            return True  # there may be something of others
        components.encoders.require_room()
        await components.image_threads.do(components.images.require_home)
        self._renewed_at = self._renewed_at if self._held else now
        # Before what is left is read: one that is admitted between would count for nothing.
        not_counted = self._not_counted(offer.owner)
        left = await self._left_today(offer.owner)

        def most(chosen: Offer) -> int:
            # Whoever has none left is refused when it is drawn: another owner's are not asked for.
            room = self._room(engine, workers, chosen)
            if left is None or chosen.owner != offer.owner:
                return room
            return max(0, min(left - not_counted, room))

        taken = await self._database.run(
            lambda c: leases.take(c, self._holder, _new_lease, most, clock(c), drawn)
        )
        for item in taken:
            self._begin(Held(item), components)
        if taken:
            self._notifier.notify()
        return bool(taken)

    def _room(self, engine: Engine, workers: int, offer: Offer) -> int:
        """How many items of ``offer`` to lease: a full batch, once fewer than half of one waits
        here; where few are left, no more than this worker's share."""
        cap = _pictures(engine, offer)
        held = list(self._held.values())
        ahead = sum(not h.begun and h.item.priority <= offer.priority for h in held)
        if ahead and 2 * ahead >= cap:
            return 0
        return min(cap, math.ceil(offer.ready / workers))

    # Limits of the owner's key, as they are now

    async def _allowed(self, offer: Offer) -> bool:
        """Whether ``offer`` may be drawn. Else it is not offered again: its items are refused, it
        waits behind others, or its owner is held until there may be something to draw again."""
        key, now = self._tools.key_of(offer.owner), time.time()
        try:
            require_allowed(key, offer)
        except Refused as error:
            said = error.code, error.message
            await self._database.run(lambda c: leases.refuse_job(c, offer.job_id, *said, clock(c)))
            self._notifier.notify()
            return False
        priority = priority_of(key, offer.priority)
        if priority > offer.priority:
            await self._database.run(lambda c: job_changes.lower_priority(c, offer.owner, priority))
            return False
        if await self._left_today(offer.owner) == 0:
            await self._hold_owner(offer.owner, key, _DAY_S - now % _DAY_S)
            return False
        return True

    def _not_counted(self, owner: str) -> int:
        """Items of ``owner`` in this worker's hands that what is left today does not know of."""
        return sum(held.item.owner == owner and not held.admitted for held in self._held.values())

    async def _left_today(self, owner: str) -> int | None:
        """Pictures that ``owner`` may draw today; None: any number."""
        key = self._tools.key_of(owner)
        if key is None or key.images_per_day is None:
            return None
        return max(0, key.images_per_day - (await self._tools.quotas.today(key) or 0))

    async def _hold_owner(self, owner: str, key: Key | None, wait_s: float) -> None:
        """Lease nothing of ``owner`` for so long: item by item, its jobs would be chosen before
        all others, for nobody has fewer under way. ``key``: as it was known before its limit was
        looked at. If it was changed since, nobody is held."""
        held_s = min(wait_s, _LOOK_AT_LIMITS_S)

        def work(connection: sa.Connection) -> None:
            if key != keys.find(connection, owner, lock=True):
                raise Unavailable("The limits of a key have just been changed.")
            job_turns.hold(connection, owner, clock(connection) + held_s)

        await self._database.run(work)
        log.event("jobs of an owner are held", owner=owner, seconds=round(held_s))
        self._notifier.notify()

    def _begin(self, held: Held, components: Components) -> None:
        self._held[held.item.lease] = held
        task = asyncio.get_running_loop().create_task(self._draw(held, components))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Results

    async def _draw(self, held: Held, components: Components) -> None:
        item, key = held.item, self._tools.key_of(held.item.owner)
        try:
            image = await draw(held, components, self._tools)
            await self._finish(held, image, components)
        except ZimageError as error:
            if not held.revoked:
                await self._settle(item, key, error)
        except Exception as error:
            log.failure("item failed", error, job=item.job_id, number=item.number)
            failed = DrawingFailed("The worker failed on this item.")
            await self._settle(item, key, failed)
        finally:
            self._held.pop(item.lease, None)
            self._tools.steps.drop(item.lease)
            self._notifier.notify()

    async def _finish(self, held: Held, image: StoredImage, components: Components) -> None:
        def work(connection: sa.Connection) -> bool:
            if not leases.finish(connection, held.item, image.id, clock(connection)):
                return False
            gallery.insert(connection, image)
            usage.apply(connection, held.used)
            return True

        if await self._surely(work):
            self._tools.metrics.job_items.labels("done").inc()
            if held.drawing is not None:
                held.drawing.note(image)
        else:
            # Somebody else draws it, or nobody may: this picture belongs to nothing.
            await components.image_threads.do(lambda: components.images.delete([image.name]))

    async def _settle(self, item: Leased, key: Key | None, error: ZimageError) -> None:
        """``item`` has no picture: another attempt, or none. ``key``: as for ``_hold_owner``."""
        code = error.code, error.message
        match error:
            case HandedBack():
                await self._surely(lambda c: leases.requeue(c, item))
            case StorageFailed():
                await self._postpone(item, _NO_ROOM_S, why=code)
            case LimitReached():
                # Told as a reason: it may be tomorrow before the key may draw again.
                with contextlib.suppress(Unavailable):  # then the next one is refused as well
                    await self._hold_owner(item.owner, key, error.retry_after_s)
                await self._postpone(item, _BUSY_S, why=code)
            case Unavailable():
                await self._postpone(item, _BUSY_S * (1 + secrets.randbelow(1000) / 1000))
            case DrawingFailed() if item.tries + 1 < MAX_TRIES:
                await self._postpone(item, 2.0**item.tries, tried=True, why=code)
            case _:
                self._tools.metrics.job_items.labels("failed").inc()
                await self._surely(lambda c: _fail(c, item, error, clock(c)))

    async def _postpone(self, item: Leased, wait_s: float, **more: Any) -> None:
        await self._surely(lambda c: leases.requeue(c, item, not_before=clock(c) + wait_s, **more))

    async def _surely(self, work: Callable[[sa.Connection], T]) -> T:
        """The result of ``work``, however long the database is away: it may be repeated."""
        wait_s = 0.1
        while True:
            try:
                return await self._database.run(work)
            except StoreAway as error:
                self._complain(error)
            await asyncio.sleep(wait_s)
            wait_s = min(_PATIENCE_S, 2 * wait_s)


def _fail(connection: sa.Connection, item: Leased, error: ZimageError, now: float) -> None:
    failed = leases.fail(connection, item, error.code, error.message, now)
    harmful = failed and error.code in (Refused.code, TooSlow.code)
    if harmful and leases.failures(connection, item.job_id, error.code) >= HARMFUL:
        leases.pause_job(connection, item.job_id)


def _pictures(engine: Engine, offer: Offer) -> int:
    """How many pictures of ``offer`` fill a batch."""
    how = offer.parameters
    return max(1, engine.batch_cap(how.size) // expected_rows(how))


def _new_lease() -> str:
    return secrets.token_hex(16)
