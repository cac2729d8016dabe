"""A backup has the pictures of the bucket, too."""

from pathlib import Path

import pytest

from deploy.backup import backup
from deploy.cell import Cell, CellError
from deploy.config import parse
from deploy.restore import restore
from tests.deploy.test_backup import write
from tests.object_store import ObjectStore
from tests.ports import free_port
from tests.worker.storage.conftest import DAY
from worker.storage.bucket_images import BucketImages

pytestmark = pytest.mark.xdist_group("s3")


def cell(folder: Path, store: ObjectStore, **changes: object) -> Cell:
    objects = store.objects("backup", **changes).model_dump()
    config = folder / "cluster.toml"
    folder.mkdir(exist_ok=True)
    config.touch()
    here = Cell(parse({"cell": {"var_dir": str(folder / "var")}, "objects": objects}), config)
    here.layout.create()
    write(here.layout.database, "then")
    return here


def test_pictures_come_back_into_the_bucket_wherever_they_lay(
    tmp_path: Path, object_store: ObjectStore
) -> None:
    here = cell(tmp_path / "a", object_store)
    stored = BucketImages.of(object_store.objects("backup"), here.layout.var_dir)
    stored.save(f"{DAY}/img_far.png", b"far")
    stored.save(f"{DAY}/img_far.thumb.webp", b"small")
    stored.spool.add([(f"{DAY}/img_waits.png", b"waits")])
    stored.folder.save(f"{DAY}/img_old.png", b"old")
    assert backup(here, tmp_path / "cell.tar", images=True).pictures == 3
    stored.bucket.delete([f"{DAY}/img_far.png"])
    other = cell(tmp_path / "b", object_store)
    stored.spool.note_deleted([f"{DAY}/img_old.png"])
    for _ in range(2):  # what is there already is looked at, and is the same
        assert restore(other, tmp_path / "cell.tar").pictures == 3
    names = {"img_far.png": b"far", "img_waits.png": b"waits", "img_old.png": b"old"}
    assert {name: stored.bucket.get(f"{DAY}/{name}") for name in names} == names
    there = BucketImages.of(object_store.objects("backup"), other.layout.var_dir)
    assert all(there.has(f"{DAY}/{name}") for name in names)


def test_another_picture_of_the_same_name_is_never_written_over(
    tmp_path: Path, object_store: ObjectStore
) -> None:
    here = cell(tmp_path / "a", object_store)
    stored = BucketImages.of(object_store.objects("backup"), here.layout.var_dir)
    stored.save(f"{DAY}/img_one.png", b"one")
    backup(here, tmp_path / "cell.tar", images=True)
    stored.bucket.delete([f"{DAY}/img_one.png"])
    stored.save(f"{DAY}/img_one.png", b"another")
    other = cell(tmp_path / "b", object_store)
    with pytest.raises(CellError, match=r"the bucket has another .*img_one.png; database and keys"):
        restore(other, tmp_path / "cell.tar")
    assert stored.bucket.get(f"{DAY}/img_one.png") == b"another"
    assert not list(other.layout.var_dir.glob("zimage.db.before-*"))


def test_a_backup_without_its_bucket_is_none(tmp_path: Path, object_store: ObjectStore) -> None:
    gone = cell(tmp_path / "a", object_store, endpoint=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(CellError, match="error sending request"):
        backup(gone, tmp_path / "cell.tar", images=True)
    assert not (tmp_path / "cell.tar").exists()
