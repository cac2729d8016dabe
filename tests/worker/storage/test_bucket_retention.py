"""Retention and orphans with a real bucket, there and away."""

import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.object_store import ObjectStore
from tests.ports import free_port
from tests.worker.coordination.test_shared_quota import a_row
from tests.worker.storage.conftest import DAY, picture
from worker.errors import StoreAway
from worker.storage import gallery
from worker.storage.bucket_images import BucketImages
from worker.storage.database import Database, clock
from worker.storage.hosts import hosts
from worker.storage.images import thumbnail_of
from worker.storage.lost_hosts import LOST_S
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

    async def sweep(self, images: BucketImages, retention: Retention = KEPT, host: str = "") -> int:
        about = images, self.database, retention, self._lock
        return await Sweeper(*about, gallery=True, host=host).sweep()

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


async def test_one_host_of_a_cluster_looks_for_orphans_in_the_bucket(
    object_store: ObjectStore,
    shared_url: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database = Database(shared_url)
    swept = Swept(object_store, f"retention/{request.node.name}", database, tmp_path)
    images, listed = swept.images, list[str]()

    async def sweep(host: str) -> None:
        def files() -> list[object]:
            listed.append(host)
            return []

        monkeypatch.setattr(images.bucket, "files", files)
        await swept.sweep(images, NO_LINKS, host)

    def enter(connection: sa.Connection) -> None:
        """No worker of the first is in the pool."""
        for name, ready in (("a", 0), ("b", 2), ("c", 2)):
            row = a_row(name, clock(connection), None) | {"ready": ready}
            connection.execute(hosts.insert().values(row))

    def lose_b(connection: sa.Connection) -> None:
        silent = {"at": clock(connection) - LOST_S - 1}
        connection.execute(hosts.update().where(hosts.c.id == "b").values(silent))

    await database.run(enter)
    images.spool.pictures.save(ORPHAN, b"spooled")
    for name in ("a", "b", "c"):
        await sweep(name)
    assert (listed, images.spool.waiting()) == (["b"], [])
    await database.run(lose_b)
    for name in ("a", "b", "c"):
        await sweep(name)
    assert listed == ["b", "c"]
    database.close()
