"""Pictures in a bucket: what the store does not take waits in a spool on this host's disk.

A picture lies in one of three places: the bucket, the spool, and the folder of the time before
there was a bucket, which ``zimage images move`` empties.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from worker import log
from worker.bounds import GIB
from worker.errors import ObjectsAway
from worker.storage.bucket import Bucket
from worker.storage.images import ImageStore, StoredFile, is_picture, not_stored, thumbnail_of
from worker.storage.spool import Spool
from worker.tables import Objects
from worker.threads import ThreadPool

LOCATION = "/internal/objects/"
"""Where nginx finds what ``BucketImages`` keeps, wherever it lies."""
_LOOK_EVERY_S = 1.0
_AT_ONCE = 100


class BucketImages:
    """Answers as ``Images`` promises."""

    def __init__(self, bucket: Bucket, spool: Spool, folder: ImageStore) -> None:
        self.bucket = bucket
        self.spool = spool
        self.folder = folder

    @classmethod
    def of(cls, objects: Objects, var_dir: Path) -> "BucketImages":
        spool = Spool(var_dir / "spool", int(objects.spool_gib * GIB))
        return cls(Bucket(objects), spool, ImageStore(var_dir / "images"))

    def require_room(self) -> None:
        if self.bucket.away:
            self.spool.require_room()

    def require_home(self) -> None:
        if self.bucket.away:
            raise not_stored("the store of pictures is away")

    def save(self, name: str, data: bytes, *, durable: bool = True) -> None:
        self.save_all([(name, data)], durable=durable)

    def save_all(self, pictures: Sequence[tuple[str, bytes]], *, durable: bool = True) -> None:
        left = list(pictures)
        try:
            while left:
                # A replay finds what its first attempt has stored, and that is the picture.
                self.bucket.put(*left[0])
                left.pop(0)
        except ObjectsAway:
            self.spool.add(left)

    def holds(self, name: str) -> bool:
        return is_picture(name) and self.has(name)

    def has(self, name: str) -> bool:
        if self.spool.is_deleted(name):
            return False
        return self._here(name) is not None or self.bucket.has(name)

    def _here(self, name: str) -> ImageStore | None:
        """Which folder of this host has it, if any."""
        return next((f for f in (self.spool.pictures, self.folder) if f.has(name)), None)

    def read(self, name: str) -> bytes:
        here = self._here(name)
        try:
            if here is not None:
                return here.read(name)
        except FileNotFoundError:
            pass  # brought to the bucket meanwhile
        return self.bucket.get(name)

    def address(self, name: str) -> str:
        return f"{LOCATION}{name}?{self.bucket.signed(name)}"

    def delete(self, names: Iterable[str]) -> None:
        pictures = list(names)
        both = [each for name in pictures for each in (name, thumbnail_of(name))]
        # First here: who brings one of them to the bucket looks whether it is still here.
        try:
            self.spool.pictures.delete(pictures)
            self.folder.delete(pictures)
        finally:
            try:
                self.bucket.delete(both)
            except ObjectsAway:
                self.spool.note_deleted(both)

    def files(self, *, shared: bool = True) -> list[StoredFile]:
        found = {file.name: file for file in self.bucket.files()} if shared else {}
        for folder in (self.folder, self.spool.pictures):
            found |= {file.name: file for file in folder.files()}
        return list(found.values())

    def remove_empty_days(self, now: float) -> None:
        for folder in (self.folder, self.spool.pictures):
            folder.remove_empty_days(now)

    # The way from the spool into the bucket

    def drain(self) -> int:
        """Bring some of what waits to the store, if nobody else does; how many pictures. Raises
        ``ObjectsAway``."""
        self.bucket.try_again()
        with self.spool.draining() as ours:
            if not ours:
                return 0
            gone = self.spool.deleted()[:_AT_ONCE]
            self.bucket.delete(gone)
            self.spool.forget_deleted(gone)
            waiting = self.spool.waiting()[:_AT_ONCE]
            for file in waiting:
                bring(self.spool.pictures, file.name, self.bucket)
            return len(waiting)


def bring(folder: ImageStore, name: str, bucket: Bucket) -> None:
    """Move a file of ``folder`` into the bucket. One that is deleted meanwhile is in neither."""
    try:
        bucket.put(name, folder.read(name))
    except FileNotFoundError:
        return
    if folder.has(name):
        folder.path(name).unlink(missing_ok=True)
    else:
        bucket.delete([name])


class SpoolDrain:
    """Looks after the spool for as long as a worker lives."""

    def __init__(self, images: BucketImages) -> None:
        self._images = images
        self._thread = ThreadPool(1, "spool")

    async def run(self) -> None:
        # Before the first job: its pictures would lie in the spool.
        with contextlib.suppress(ObjectsAway):
            await self._thread.do(self._images.bucket.require_list)
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                brought = await self._thread.do(self._images.drain)
            except (ObjectsAway, OSError) as error:
                if not isinstance(error, ObjectsAway):
                    log.failure("the spool cannot be read", error)
                continue
            if brought:
                log.event("spooled pictures are in the store", pictures=brought)

    def close(self) -> None:
        self._thread.close()
