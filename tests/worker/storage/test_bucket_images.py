"""Pictures in a bucket, and in the spool while the store is away."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.object_store import ObjectStore
from tests.ports import free_port
from tests.worker.storage.conftest import DAY
from worker.errors import ObjectsAway, StorageFailed
from worker.storage.bucket import Bucket
from worker.storage.bucket_images import BucketImages, bring
from worker.storage.images import ImageStore, thumbnail_of

pytestmark = pytest.mark.xdist_group("s3")

FOX, HARE = f"{DAY}/img_fox.png", f"{DAY}/img_hare.png"


class Host:
    """One host's pictures, with the store there and away."""

    def __init__(self, store: ObjectStore, prefix: str, var_dir: Path) -> None:
        gone = f"http://127.0.0.1:{free_port()}"
        self.var_dir = var_dir
        self.images = BucketImages.of(store.objects(prefix), var_dir)
        self.away = BucketImages.of(store.objects(prefix, endpoint=gone), var_dir)
        with pytest.raises(ObjectsAway):
            self.away.bucket.has("x")


@pytest.fixture
def host(object_store: ObjectStore, request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    return Host(object_store, f"images/{request.node.name}", tmp_path)


def test_a_stored_picture_is_in_the_bucket_and_not_on_this_host(host: Host) -> None:
    host.images.save(FOX, b"fox")
    assert host.images.holds(FOX)
    assert host.images.read(FOX) == b"fox"
    assert [file.name for file in host.images.files()] == [FOX]
    assert not list(host.var_dir.rglob("*.png"))
    host.images.delete([FOX])
    assert not host.images.holds(FOX)


def test_a_replay_finds_what_its_first_attempt_stored(host: Host) -> None:
    host.images.save(FOX, b"first")
    host.images.save(FOX, b"second")
    assert host.images.read(FOX) == b"first"


def test_while_the_store_is_away_pictures_wait_on_the_disk_and_can_be_seen(host: Host) -> None:
    host.away.require_room()
    host.away.save_all([(FOX, b"fox"), (HARE, b"hare")])
    assert host.away.holds(FOX)
    assert host.away.read(FOX) == b"fox"
    assert host.away.address(FOX).startswith(f"/internal/objects/{FOX}?X-Amz-")
    with pytest.raises(ObjectsAway):
        host.away.holds(f"{DAY}/img_other.png")


def test_jobs_wait_while_the_store_is_away(host: Host) -> None:
    host.images.require_home()
    with pytest.raises(StorageFailed, match="the store of pictures is away"):
        host.away.require_home()


def test_what_waited_is_brought_to_the_store_whoever_is_there_by_then(host: Host) -> None:
    host.away.save_all([(FOX, b"fox"), (HARE, b"hare")])
    with pytest.raises(ObjectsAway):
        host.away.drain()
    assert host.images.drain() == 2
    assert host.images.bucket.get(FOX) == b"fox"
    assert not host.images.spool.waiting()
    assert host.images.drain() == 0


def test_one_of_a_hosts_workers_drains_at_a_time(host: Host) -> None:
    host.away.save(FOX, b"fox")
    with host.away.spool.draining() as ours:
        assert ours
        assert host.images.drain() == 0
    assert host.images.drain() == 1


def test_a_full_spool_takes_nothing_more(host: Host) -> None:
    host.away.spool._max_bytes = 10
    host.away.save(FOX, b"12345678")
    with pytest.raises(StorageFailed, match="spool is full"):
        host.away.save(HARE, b"123")
    with pytest.raises(StorageFailed, match="spool is full"):
        host.away.require_room()
    assert [file.name for file in host.away.spool.waiting()] == [FOX]


def test_the_bound_of_the_spool_holds_for_all_workers_together(host: Host) -> None:
    host.away.spool._max_bytes = 50
    refused = []

    def fill(worker: int) -> None:
        for k in range(10):
            try:
                host.away.spool.add([(f"{DAY}/img_{worker}-{k}.png", b"1234567890")])
            except StorageFailed:
                refused.append(k)

    threads = [threading.Thread(target=fill, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert host.away.spool.bytes == 50
    assert len(refused) == 35


def test_what_is_deleted_while_the_store_is_away_is_gone_at_once_and_for_good(host: Host) -> None:
    host.images.save(FOX, b"fox")
    host.images.save(thumbnail_of(FOX), b"small")
    host.away.save(HARE, b"hare")
    host.away.delete([FOX, HARE])
    assert not host.away.holds(FOX)
    assert not host.images.holds(FOX)
    assert not host.away.spool.waiting()
    host.images.drain()
    assert host.images.files() == []
    assert host.images.spool.deleted() == []


def test_a_picture_that_is_deleted_on_its_way_into_the_store_is_in_neither(host: Host) -> None:
    host.away.save(FOX, b"fox")

    class Slow(Bucket):
        def put(self, name: str, data: bytes) -> bool:
            host.images.delete([name])  # somebody is faster
            return super().put(name, data)

    slow = Slow(host.images.bucket._objects)
    bring(host.images.spool.pictures, FOX, slow)
    assert host.images.files() == []


def test_pictures_of_the_time_before_the_bucket_are_still_there(host: Host) -> None:
    ImageStore(host.var_dir / "images").save(FOX, b"fox")
    assert host.images.holds(FOX)
    assert host.images.read(FOX) == b"fox"
    assert [file.name for file in host.images.files()] == [FOX]
    host.images.delete([FOX])
    assert not host.images.holds(FOX)


def test_without_a_bucket_its_client_is_not_even_imported() -> None:
    script = "import sys, worker.app, deploy.cli.app; print('obstore' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert said.stdout == "False\n", said.stderr
