"""A backup has the pictures of the bucket, too."""

from pathlib import Path

import pytest

from deploy.backup import backup, restore
from deploy.cell import Cell, CellError
from deploy.config import parse
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


def test_pictures_of_the_bucket_come_back_into_the_folder(
    tmp_path: Path, object_store: ObjectStore
) -> None:
    here = cell(tmp_path / "a", object_store)
    stored = BucketImages.of(object_store.objects("backup"), here.layout.var_dir)
    stored.save(f"{DAY}/img_far.png", b"far")
    stored.save(f"{DAY}/img_far.thumb.webp", b"small")
    stored.spool.add([(f"{DAY}/img_waits.png", b"waits")])
    stored.folder.save(f"{DAY}/img_old.png", b"old")
    assert backup(here, tmp_path / "cell.tar", images=True).pictures == 3
    other = cell(tmp_path / "b", object_store)
    assert restore(other, tmp_path / "cell.tar").pictures == 3
    day = other.layout.images_dir / DAY
    found = {path.name: path.read_bytes() for path in day.iterdir()}
    assert found == {"img_far.png": b"far", "img_waits.png": b"waits", "img_old.png": b"old"}


def test_a_backup_without_its_bucket_is_none(tmp_path: Path, object_store: ObjectStore) -> None:
    gone = cell(tmp_path / "a", object_store, endpoint=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(CellError, match="error sending request"):
        backup(gone, tmp_path / "cell.tar", images=True)
    assert not (tmp_path / "cell.tar").exists()
