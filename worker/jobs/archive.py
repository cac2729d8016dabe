"""The pictures of a job as one ZIP file, made while it is sent: one picture in memory at a time.

Size and checksum stand before each picture, so what reads streams can unpack it as it comes.
"""

import asyncio
import re
import time
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from io import SEEK_SET, BytesIO
from typing import TypeVar

import sqlalchemy as sa

from worker.errors import StoreAway
from worker.storage import gallery, job_items
from worker.storage.database import Database
from worker.storage.gallery import StoredImage
from worker.storage.images import Images
from worker.storage.job_items import Item
from worker.storage.jobs import Job

T = TypeVar("T")

_PATIENCE_S = 20.0
_PAUSE_S = 0.5
_PAGE = 200
_WORDS_CHARS = 40
_MISSING_CHARS = 100  # of a prompt: there may be ten thousand


async def archive(database: Database, images: Images, job: Job) -> AsyncIterator[bytes]:
    """The bytes of the file. Pictures that were deleted are named in ``missing.txt``."""
    sink, missing = _Sink(), []
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as zipped:
        async for item, image in _pictures(database, job):
            data = None
            if image is not None:
                data = await _answer_of(partial(asyncio.to_thread, _read, images, image.name))
            if image is None or data is None:
                missing.append(f"{item.number}: {item.prompt[:_MISSING_CHARS]}")
                continue
            zipped.writestr(_entry(item, image, job.total), data)
            yield sink.taken()
        if missing:
            zipped.writestr("missing.txt", "\n".join(["Deleted meanwhile:", *missing, ""]))
    yield sink.taken()


async def _pictures(database: Database, job: Job) -> AsyncIterator[tuple[Item, StoredImage | None]]:
    """Items that are done, and their pictures where they are still there."""
    after = 0

    def page(connection: sa.Connection) -> list[tuple[Item, StoredImage | None]]:
        done = job_items.items_of(connection, job.id, ("done",), _PAGE, after)
        ids = [item.image_id for item in done if item.image_id]
        images = {image.id: image for image in gallery.named(connection, ids)}
        return [(item, images.get(item.image_id or "")) for item in done]

    while found := await _answer_of(partial(database.read, page)):
        for pair in found:
            yield pair
        after = found[-1][0].number


async def _answer_of(ask: Callable[[], Awaitable[T]]) -> T:
    """Asked again for ``_PATIENCE_S`` where the store is away: what is sent cannot be taken back,
    and whoever gets it would have to begin anew."""
    give_up_at = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return await ask()
        except StoreAway:
            if time.monotonic() >= give_up_at:
                raise
        await asyncio.sleep(_PAUSE_S)


def _read(images: Images, name: str) -> bytes | None:
    try:
        return images.read(name)
    except FileNotFoundError:
        return None


def _entry(item: Item, image: StoredImage, total: int) -> zipfile.ZipInfo:
    words = re.sub(r"\W+", "-", item.prompt)[:_WORDS_CHARS].strip("-")
    digits = max(4, len(str(total)))
    name = f"{item.number:0{digits}d}-{words}.{image.format}"
    entry = zipfile.ZipInfo(name, time.gmtime(image.created_at)[:6])
    entry.external_attr = 0o644 << 16
    return entry


class _Sink(BytesIO):
    """What a ZIP file is written to. ``zipfile`` goes back to put size and checksum before an
    entry; as far as what was ``taken`` it cannot."""

    def __init__(self) -> None:
        super().__init__()
        self._taken = 0

    def tell(self) -> int:
        return self._taken + super().tell()

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        assert whence == SEEK_SET, whence
        assert offset >= self._taken, "what is sent stays as it is"
        return self._taken + super().seek(offset - self._taken)

    def taken(self) -> bytes:
        """What was written since this was asked last."""
        data = self.getvalue()
        super().seek(0)
        self.truncate()
        self._taken += len(data)
        return data
