"""Puts pictures into the gallery behind their answers: no drawing waits for disk or database.

What waits is bounded. A disk that is full or too slow loses pictures, counted and logged; while
the database is away, rows wait for it and their files lie ready. A worker that is killed loses
what waits, so this is for pictures that were answered; a job stores its own with its own rows.
"""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from worker import log
from worker.errors import StoreAway
from worker.storage import gallery
from worker.storage.database import Database
from worker.storage.gallery import StoredImage
from worker.storage.images import Images

MAX_WAITING_BYTES = 128 << 20
MAX_WAITING_ROWS = 5000
_PAUSE_S = 1.0
_COALESCE_S = 0.2
"""After a picture, how long to wait for others that are stored together with the next."""
_MAX_COALESCE_S = 1.0
"""After many: a row costs a third of the time in a transaction of twenty, for the index of their
words is written once."""


class GalleryWriter:
    """``on_lost`` hears how many pictures could not be kept."""

    def __init__(self, store: Images, database: Database, on_lost: Callable[[int], None]) -> None:
        self._store = store
        self._database = database
        self._on_lost = on_lost
        self._files: list[tuple[StoredImage, bytes]] = []
        self._rows: list[StoredImage] = []
        self._waiting = 0  # pictures without a row, those being written included
        self._bytes = 0
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keeper")

    def keep(self, picture: StoredImage, data: bytes | None) -> None:
        """Take a picture and return at once. ``data`` None: its file is stored already."""
        size = self._bytes + len(data or b"")
        if self._waiting >= MAX_WAITING_ROWS or size > MAX_WAITING_BYTES:
            self._lose(1, "too many pictures wait for the disk or the database")
            return
        self._waiting += 1
        if data is None:
            self._rows.append(picture)
        else:
            self._files.append((picture, data))
            self._bytes = size
        self._idle.clear()
        self._changed.set()

    async def run(self) -> None:
        """For as long as the worker lives."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            begun = self._waiting
            await self._save()
            await self._commit()
            (self._changed if self._files or self._rows else self._idle).set()
            # The first comes at once, those of the next moment together: a file and a row by
            # themselves cost several times what they cost in company.
            await self._pause(min(_MAX_COALESCE_S, begun * _COALESCE_S))

    async def _pause(self, seconds: float) -> None:
        """Or until the end: nothing is paused for then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    async def close(self, timeout_s: float) -> None:
        """Give what waits so long to be stored."""
        self._closing.set()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            self._lose(self._waiting, "the worker ends")
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _save(self) -> None:
        batch, self._files = self._files, []
        if not batch:
            return
        loop = asyncio.get_running_loop()
        saved, error = await loop.run_in_executor(self._thread, self._saved, batch)
        self._bytes -= sum(len(data) for _, data in batch)
        self._rows += saved
        if error is not None:
            self._waiting -= len(batch) - len(saved)
            self._lose(len(batch) - len(saved), str(error))

    def _saved(
        self, batch: list[tuple[StoredImage, bytes]]
    ) -> tuple[list[StoredImage], Exception | None]:
        """Those whose files are safe on the disk, and why the others are not."""
        try:
            self._store.require_room()
            self._store.save_all([(picture.name, data) for picture, data in batch])
        except Exception as error:
            if len(batch) == 1:
                return [], error
            # Some may have room where all have not.
            parts = [self._saved([each]) for each in batch]
            return [picture for saved, _ in parts for picture in saved], error
        return [picture for picture, _ in batch], None

    async def _commit(self) -> None:
        rows = self._rows[:]
        if not rows:
            return
        try:
            refused = await self._database.run_each(rows, lambda c, some: gallery.insert(c, *some))
        except StoreAway:
            await asyncio.sleep(_PAUSE_S)
            return
        for picture, error in refused:
            log.failure("a picture cannot be put into the gallery", error, image=picture.id)
        self._lose(len(refused), "the database refuses them")
        del self._rows[: len(rows)]
        self._waiting -= len(rows)

    def _lose(self, pictures: int, why: str) -> None:
        if pictures:
            log.event("pictures are not in the gallery", pictures=pictures, why=why)
            self._on_lost(pictures)
