"""A folder's pictures go into a real bucket, and back."""

from pathlib import Path

import pytest

from tests.object_store import ObjectStore
from tests.ports import free_port
from tests.worker.storage.conftest import DAY
from worker.errors import ObjectsAway
from worker.storage.bucket_images import BucketImages
from worker.storage.image_move import Moved, into_bucket, into_folder

pytestmark = pytest.mark.xdist_group("s3")

NAMES = [f"{DAY}/img_{k:03}.{kind}" for k in range(70) for kind in ("png", "thumb.webp")]


@pytest.fixture
def images(
    object_store: ObjectStore, request: pytest.FixtureRequest, tmp_path: Path
) -> BucketImages:
    images = BucketImages.of(object_store.objects(f"move/{request.node.name}"), tmp_path)
    images.folder.save_all([(name, name.encode()) for name in NAMES], durable=False)
    return images


def quiet(_: Moved) -> None:
    pass


def test_all_pictures_go_into_the_bucket_and_none_is_missed_on_the_way(
    images: BucketImages,
) -> None:
    def look(moved: Moved) -> None:
        if moved.files in (1, 60, 140):
            assert all(images.has(name) for name in NAMES)

    moved = into_bucket(images, look)
    assert (moved.of, moved.files, moved.damaged) == (140, 140, [])
    assert moved.bytes == sum(len(name) for name in NAMES)
    assert images.folder.files() == []
    assert {file.name for file in images.bucket.files()} == set(NAMES)
    assert into_bucket(images, quiet).of == 0


def test_a_move_that_was_cut_short_goes_on(
    images: BucketImages, object_store: ObjectStore, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    class Cut(Exception):
        pass

    def cut(moved: Moved) -> None:
        if moved.files == 10:
            raise Cut

    with pytest.raises(Cut):
        into_bucket(images, cut)
    left = len(images.folder.files())
    assert 0 < left < 140
    gone = f"http://127.0.0.1:{free_port()}"
    away = BucketImages.of(object_store.objects("move", endpoint=gone), tmp_path)
    with pytest.raises(ObjectsAway):
        into_bucket(away, quiet)
    assert into_bucket(images, quiet).files == left
    assert {file.name for file in images.bucket.files()} == set(NAMES)


def test_a_copy_that_differs_is_told_and_the_file_stays(images: BucketImages) -> None:
    images.bucket.put(NAMES[0], b"something else")
    moved = into_bucket(images, quiet)
    assert (moved.files, moved.damaged) == (139, [NAMES[0]])
    assert [file.name for file in images.folder.files()] == [NAMES[0]]
    assert images.read(NAMES[0]) == NAMES[0].encode()


def test_a_picture_that_is_deleted_meanwhile_is_in_neither(images: BucketImages) -> None:
    def delete(moved: Moved) -> None:
        if moved.done % 35 == 1:
            images.delete([name for name in NAMES if name.endswith("png")])

    moved = into_bucket(images, delete)
    assert moved.files + moved.gone == 140
    assert images.files() == []


def test_all_pictures_come_back_those_of_the_spool_too(images: BucketImages) -> None:
    into_bucket(images, quiet)
    images.spool.add([(f"{DAY}/img_waits.png", b"waits")])
    moved = into_folder(images, quiet)
    assert (moved.of, moved.files) == (141, 141)
    assert images.bucket.files() == []
    assert images.spool.waiting() == []
    assert all(images.folder.read(name) == name.encode() for name in NAMES)
