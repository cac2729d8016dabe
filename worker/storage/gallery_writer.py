"""Puts pictures into the gallery behind their answers: no drawing waits for disk or database.

What waits is bounded. A disk that is full or too slow loses pictures, counted and logged; while
the database is away, rows wait for it and their files lie ready. A worker that is killed loses
what waits, so this is for pictures that were answered; a job stores its own with its own rows.
"""

from collections.abc import Callable
from functools import partial

from worker import log
from worker.outbox import LoopOutbox
from worker.storage import gallery
from worker.storage.database import Database
from worker.storage.gallery import StoredImage
from worker.storage.images import Images
from worker.threads import ThreadPool

MAX_WAITING_BYTES = 128 << 20
MAX_WAITING_ROWS = 5000
_PAUSE_S = 1.0
_COALESCE_S = 0.2
"""After a picture, how long to wait for others that are stored together with the next."""
_MAX_COALESCE_S = 1.0
"""After many: a row costs a third of the time in a transaction of twenty, for the index of their
words is written once."""


class GalleryWriter(LoopOutbox[tuple[StoredImage, bytes | None]]):
    """``on_lost`` hears how many pictures could not be kept."""

    def __init__(self, store: Images, database: Database, on_lost: Callable[[int], None]) -> None:
        says = "pictures wait for the database", "pictures are not in the gallery"
        super().__init__(on_lost, says, _PAUSE_S)
        self._store = store
        self._database = database
        self._thread = ThreadPool(1, "keeper")

    def keep(self, picture: StoredImage, data: bytes | None) -> None:
        """Take a picture and return at once. ``data`` None: its file is stored already."""
        self._put((picture, data), len(data or b""), MAX_WAITING_ROWS, MAX_WAITING_BYTES)

    def _pause_s(self, items: int) -> float:
        # The first comes at once, those of the next moment together: a file and a row by
        # themselves cost several times what they cost in company.
        return min(_MAX_COALESCE_S, items * _COALESCE_S)

    async def close(self, timeout_s: float) -> None:
        """Give what waits so long to be stored."""
        await self._end(timeout_s)
        self._thread.close()

    async def _write(self) -> None:
        batch = self._waiting[:]
        rows = [picture for picture, data in batch if data is None]
        files = [(picture, data) for picture, data in batch if data is not None]
        if files:
            saved, error = await self._thread.do(partial(self._saved, files))
            rows += saved
            self._waiting[: len(batch)] = [(picture, None) for picture in rows]
            self._waiting_bytes -= sum(len(data) for _, data in files)
            if error is not None:
                self._lose(len(files) - len(saved), str(error))
        refused = await self._database.run_each(rows, lambda c, some: gallery.insert(c, *some))
        for picture, why in refused:
            log.failure("a picture cannot be put into the gallery", why, image=picture.id)
        self._lose(len(refused), "the database refuses them")
        del self._waiting[: len(rows)]

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
