"""Retention and orphans with a real bucket, there and away."""

import time
from pathlib import Path

import pytest

from tests.object_store import ObjectStore
from tests.ports import free_port
from tests.worker.storage.conftest import DAY, picture
from worker.errors import StoreAway
from worker.storage import gallery
from worker.storage.bucket_images import BucketImages
from worker.storage.database import Database
from worker.storage.images import thumbnail_of
from worker.storage.retention import Retention, Sweeper

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("s3")]

KEPT = Retention(keep_s=1000.0, keep_bytes=1000, favourites_bytes=500, link_s=100.0)
NO_LINKS = Retention(keep_s=1000.0, keep_bytes=1000, favourites_bytes=500, link_s=-1.0)
ORPHAN = f"{DAY}/img_orphan.png"


class Swept:
    """An old and a new picture, and one without a row, in a bucket; sweeps of them."""

    def __init__(self, store: ObjectStore, prefix: str, database: Database, var_dir: Path) -> None:
        gone = f"http://127.0.0.1:{free_port()}"
        self.images = BucketImages.of(store.objects(prefix), var_dir)
        self.away = BucketImages.of(store.objects(prefix, endpoint=gone), var_dir)
        self.database, self._lock = database, var_dir / "lock"

    async def fill(self) -> "Swept":
        now = time.time()
        pictures = [picture("old", now - 1100), picture("new", now - 10)]
        for one in pictures:
            self.images.save(one.name, b"x" * one.bytes)
            self.images.save(thumbnail_of(one.name), b"x")
        self.images.save(ORPHAN, b"x")
        await self.database.run(lambda c: gallery.insert(c, *pictures))
        return self

    async def sweep(self, images: BucketImages, retention: Retention = KEPT) -> int:
        return await Sweeper(images, self.database, retention, self._lock, gallery=True).sweep()

    def left(self) -> set[str]:
        """Of the bucket, by the ids of their pictures."""
        return {file.id for file in self.images.bucket.files()}


@pytest.fixture
async def swept(
    object_store: ObjectStore, request: pytest.FixtureRequest, database: Database, tmp_path: Path
) -> Swept:
    prefix = "retention/" + request.node.name.replace("[", "/").replace("]", "")
    return await Swept(object_store, prefix, database, tmp_path).fill()


async def test_old_pictures_and_then_orphans_leave_the_bucket(swept: Swept) -> None:
    assert await swept.sweep(swept.images) == 1
    assert swept.left() == {"img_new", "img_orphan"}
    assert await swept.sweep(swept.images, NO_LINKS) == 1
    assert swept.left() == {"img_new"}


async def test_what_is_swept_while_the_store_is_away_leaves_it_later(swept: Swept) -> None:
    with pytest.raises(StoreAway):  # nobody can tell what is an orphan
        await swept.sweep(swept.away, NO_LINKS)
    assert swept.left() == {"img_old", "img_new", "img_orphan"}
    assert len(swept.images.spool.deleted()) == 2
    assert not any(swept.images.has(name) for name in swept.images.spool.deleted())
    swept.images.drain()
    assert swept.left() == {"img_new", "img_orphan"}
