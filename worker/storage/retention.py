"""Which pictures go, and when: by age, by size, uploads by their time, files that no row names."""

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import sqlalchemy as sa

from worker import log
from worker.file_lock import try_lock
from worker.storage import gallery, uploads
from worker.storage.database import Database, clock
from worker.storage.gallery import StoredImage, images
from worker.storage.images import Images, StoredFile
from worker.storage.locks import lock
from worker.storage.uploads import Upload

ABANDONED_S = 600.0
"""An unfinished file this old belongs to a dead worker."""
STRAYS_EVERY_S = 3600.0
_SUSPECT_S = 86_400.0
_AT_ONCE = 500


@dataclass(frozen=True)
class Retention:
    """``keep_bytes`` of all pictures. Favourites are spared up to ``favourites_bytes``: older
    ones beyond it go like others. Both are shared fairly: whoever has less than the others loses
    nothing to them. ``link_s``: life of a file that is in no gallery."""

    keep_s: float
    keep_bytes: int
    favourites_bytes: int
    link_s: float


class Sweeper:
    """One worker of a cell sweeps at a time; ``lock`` says whose turn it is.

    ``gallery``: whether pictures go into it; without, files are looked at every time. ``host`` of a
    cluster: one of its hosts looks at the files that all of them share.
    """

    def __init__(
        self,
        store: Images,
        database: Database,
        retention: Retention,
        lock: Path,
        gallery: bool,
        host: str = "",
    ) -> None:
        self._store = store
        self._database = database
        self._retention = retention
        self._lock = lock
        self._gallery = gallery
        self._host = host
        self._strays_at = 0.0

    async def sweep(self) -> int:
        """Delete what must go; how many pictures that were. Raises ``StoreAway`` or ``OSError``."""
        held = await asyncio.to_thread(_take, self._lock)
        if held is None:
            return 0
        with held:
            deleted = await self._rows() + await self._uploads()
            if not self._gallery or time.monotonic() > self._strays_at:
                self._strays_at = time.monotonic() + STRAYS_EVERY_S
                deleted += await self._strays()
            return deleted

    async def _rows(self) -> int:
        deleted = 0
        while gone := await self._database.run(self._forget):
            await asyncio.to_thread(self._store.delete, [picture.name for picture in gone])
            deleted += len(gone)
        return deleted

    def _forget(self, connection: sa.Connection) -> list[StoredImage]:
        lock(connection, "retention")  # hosts that look at once would each delete what is too much
        gone = doomed(connection, self._retention, clock(connection))
        if gone:
            gallery.delete(connection, [picture.id for picture in gone])
        return gone

    async def _uploads(self) -> int:
        deleted = 0
        while gone := await self._database.run(_forget_uploads):
            await asyncio.to_thread(self._store.delete, [upload.name for upload in gone])
            deleted += len(gone)
        return deleted

    async def _strays(self) -> int:
        shared = not self._host or await self._database.read(self._is_first)
        found = await asyncio.to_thread(lambda: self._store.files(shared=shared))
        strays = await self._without_row(found)
        now = await self._database.read(clock)
        held = frozenset[str]()
        if self._gallery:
            held = without_rows(found, strays, now - self._retention.link_s - _SUSPECT_S)
        if held:
            log.event("pictures are unknown to the database and stay", pictures=len(held))
        gone = excess(strays, self._retention, now, held)
        await asyncio.to_thread(self._store.delete, [file.name for file in gone])
        await asyncio.to_thread(self._store.remove_empty_days, now)
        return len(gone)

    def _is_first(self, connection: sa.Connection) -> bool:
        from worker.storage.lost_hosts import is_first  # which a host of its own needs not

        return is_first(connection, self._host, clock(connection))

    async def _without_row(self, files: Sequence[StoredFile]) -> list[StoredFile]:
        ids = sorted({file.id for file in files})
        there: set[str] = set()
        for k in range(0, len(ids), _AT_ONCE):
            some = ids[k : k + _AT_ONCE]
            there |= await self._database.read(partial(_known, ids=some))
        return [file for file in files if file.id not in there]


def _known(connection: sa.Connection, ids: Collection[str]) -> set[str]:
    return gallery.known(connection, ids) | uploads.known(connection, ids)


def _forget_uploads(connection: sa.Connection) -> list[Upload]:
    gone = uploads.expired(connection, clock(connection))
    if gone:
        uploads.delete(connection, [upload.id for upload in gone])
    return gone


def doomed(connection: sa.Connection, retention: Retention, now: float) -> list[StoredImage]:
    """Some pictures that must go, oldest first; empty where none must. Where there is too much,
    those go whose owners have more than their share."""
    oldest = now - retention.keep_s
    bytes_of = _bytes_by_owner(connection)
    too_much = sum(bytes_of.values()) - retention.keep_bytes
    share = fair_share(list(bytes_of.values()), retention.keep_bytes)
    beyond = {owner: has - share for owner, has in bytes_of.items() if has > share}
    query = sa.select(images.c.id, images.c.owner, images.c.created_at, images.c.bytes)
    query = query.where(~images.c.favourite | images.c.id.in_(_unspared(connection, retention)))
    if too_much > 0:
        theirs = sa.case((images.c.owner.in_(beyond), 0), else_=1)
        query = query.order_by(theirs, images.c.created_at)
    else:
        query = query.where(images.c.created_at < oldest).order_by(images.c.created_at)
    gone = []
    for row in connection.execute(query.limit(_AT_ONCE)):
        enough = too_much <= 0 or beyond.get(row.owner, 1) <= 0
        if enough and row.created_at >= oldest:
            continue
        gone.append(row.id)
        too_much -= row.bytes
        if row.owner in beyond:
            beyond[row.owner] -= row.bytes
    return gallery.named(connection, gone)


def _bytes_by_owner(
    connection: sa.Connection, *conditions: sa.ColumnElement[bool]
) -> dict[str, int]:
    query = sa.select(images.c.owner, sa.func.sum(images.c.bytes)).where(*conditions)
    rows = connection.execute(query.group_by(images.c.owner))
    return {owner: int(has) for owner, has in rows}


def _unspared(connection: sa.Connection, retention: Retention) -> sa.Select[tuple[str]]:
    """The favourites, by id, that are beyond their owner's share of ``favourites_bytes``: of each
    owner the oldest."""
    has = _bytes_by_owner(connection, images.c.favourite)
    share = fair_share(list(has.values()), retention.favourites_bytes)
    so_far = sa.func.sum(images.c.bytes).over(
        partition_by=images.c.owner, order_by=images.c.created_at.desc()
    )
    favourites = sa.select(images.c.id, so_far.label("so_far")).where(images.c.favourite).subquery()
    return sa.select(favourites.c.id).where(favourites.c.so_far > share)


def fair_share(wanted: Sequence[int], room: int) -> int:
    """The most that each may have so that all fit into ``room``: those who want less leave the
    rest to the others. More than anybody wants where all fit."""
    left = room
    for k, want in enumerate(sorted(wanted)):
        share = left // (len(wanted) - k)
        if want > share:
            return share
        left -= want
    return room


def without_rows(
    files: Sequence[StoredFile], strays: Sequence[StoredFile], suspect: float
) -> frozenset[str]:
    """The strays whose rows are missing, as in a database out of a backup, by their names.

    A stray that was written before ``suspect`` would have gone long ago. Where half of a day's
    files are such, it is the rows that are missing, and where that is so on the last of these
    days, those of younger files are missing, too. Else some of a day were left over when their
    rows went, and go.
    """
    whole = {file.name for file in strays if not file.unfinished}
    of_day: dict[str, list[StoredFile]] = {}
    for file in files:
        if file.modified_at < suspect and not file.unfinished:
            of_day.setdefault(file.day, []).append(file)
    missing = {
        day
        for day, found in of_day.items()
        if 2 * sum(file.name in whole for file in found) >= len(found)
    }
    if of_day and max(of_day) in missing:
        missing |= {file.day for file in files if file.modified_at >= suspect}
    return frozenset(file.name for file in strays if file.name in whole and file.day in missing)


def excess(
    strays: Sequence[StoredFile],
    retention: Retention,
    now: float,
    held: Collection[str] = (),
) -> list[StoredFile]:
    """Files of no gallery that are too old, and the oldest beyond the allowed size. Those called
    ``held`` may become as old as pictures."""
    gone, total = [], 0
    for file in sorted(strays, key=lambda file: -file.modified_at):
        total += file.bytes
        max_age_s = ABANDONED_S if file.unfinished else retention.link_s
        max_age_s = retention.keep_s if file.name in held else max_age_s
        if now - file.modified_at > max_age_s or total > retention.keep_bytes:
            gone.append(file)
    return gone


def _take(lock: Path) -> IO[str] | None:
    """The lock, to be closed; None while another worker holds it."""
    file = lock.open("a", encoding="utf-8")
    if try_lock(file):
        return file
    file.close()
    return None
