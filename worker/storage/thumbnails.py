"""Small copies of stored pictures, each made when somebody first looks at it."""

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from worker.storage.images import Images, thumbnail_of

SIDE = 384
"""Longest side in pixels."""
MEDIA_TYPE = "image/webp"
_QUALITY = 80


class Thumbnails:
    """Makes one at a time, in a thread of its own: encoding for answers goes ahead."""

    def __init__(self, store: Images) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="thumbnails")

    async def of(self, name: str) -> str:
        """Where nginx finds the thumbnail of picture ``name``, which is there now.

        Raises ``OSError`` where the picture is not or cannot be read, ``StorageFailed`` where
        there is no room, ``StoreAway``.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._made, name)

    def _made(self, name: str) -> str:
        thumbnail = thumbnail_of(name)
        if not self._store.has(thumbnail):
            self._store.save(thumbnail, _small(self._store.read(name)), durable=False)
        return self._store.address(thumbnail)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def _small(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as picture:
        picture.draft("RGB", (SIDE, SIDE))  # JPEG decodes no more than it needs
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "webp", quality=_QUALITY, method=2)
        return buffer.getvalue()
