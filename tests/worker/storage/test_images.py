import errno
import os
import shutil
import time
from pathlib import Path

import pytest

from worker.errors import StorageFailed
from worker.storage.images import ImageStore, Signer, day, thumbnail_of
from worker.storage.secret import only

NAME = f"2026-01-31/{'a' * 32}-0.png"


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def test_signature_covers_name_and_time() -> None:
    signer = Signer(only(b"secret"))
    signature = signer.sign("a.png", 100)
    assert signer.valid("a.png", "100", signature)
    assert not signer.valid("b.png", "100", signature)
    assert not signer.valid("a.png", "101", signature)
    assert not Signer(only(b"other")).valid("a.png", "100", signature)


@pytest.mark.parametrize(
    ("expires", "signature"), [("", ""), ("x", "y"), ("9" * 99, "é"), ("1", "")]
)
def test_nonsense_is_no_signature(expires: str, signature: str) -> None:
    assert not Signer(only(b"secret")).valid("a.png", expires, signature)


def test_picture_is_there_whole_or_not_at_all(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(NAME, b"first")
    assert store.holds(NAME)

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFailed, match="No space left") as caught:
        store.save(NAME, b"second")
    assert caught.value.param == "response_format"
    assert (tmp_path / "images" / NAME).read_bytes() == b"first"
    assert len(list((tmp_path / "images").rglob("*.*"))) == 1


def test_full_disk_is_noticed_before_drawing(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.require_room()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(StorageFailed, match="disk is full"):
        store.require_room()


@pytest.mark.parametrize("name", ["../../etc/passwd", "2026-01-31/../x.png", "a.png", NAME + "/x"])
def test_other_names_are_no_pictures(store: ImageStore, name: str) -> None:
    assert not store.holds(name)


def test_a_deleted_picture_takes_its_thumbnail_along(store: ImageStore) -> None:
    young = NAME.replace("-0.", "-1.")
    for name in (NAME, thumbnail_of(NAME), young):
        store.save(name, b"x")
    store.delete([NAME, NAME.replace("-0.", "-2.")])
    assert [file.name for file in store.files()] == [young]


def test_empty_days_are_removed_but_today_stays(store: ImageStore, tmp_path: Path) -> None:
    now = time.time()
    for name in (NAME, NAME.replace("2026-01-31", day(now))):
        store.save(name, b"x")
        store.delete([name])
    store.remove_empty_days(now)
    assert [path.name for path in (tmp_path / "images").iterdir()] == [day(now)]


def test_a_picture_is_synced_before_its_name_and_its_folder_after(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    replace, fsync = Path.replace, os.fsync

    def renamed(self: Path, target: Path) -> Path:
        done.append(f"rename to {target.name}")
        return replace(self, target)

    def synced(fd: int) -> None:
        done.append(f"sync {Path(f'/proc/self/fd/{fd}').readlink().name.split('.png')[0]}")
        fsync(fd)

    monkeypatch.setattr(Path, "replace", renamed)
    monkeypatch.setattr(os, "fsync", synced)
    store.save(NAME, b"x")
    name = NAME.partition("/")[2]
    file = f"sync .{name.removesuffix('.png')}"
    assert done == ["sync images", file, f"rename to {name}", "sync 2026-01-31"]


def test_several_pictures_are_written_before_the_first_is_synced(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    write, fsync = Path.write_bytes, os.fsync

    def written(self: Path, data: bytes) -> int:
        done.append("write")
        return write(self, data)

    def synced(fd: int) -> None:
        done.append("sync")
        fsync(fd)

    monkeypatch.setattr(Path, "write_bytes", written)
    monkeypatch.setattr(os, "fsync", synced)
    names = [f"2026-01-31/{letter * 32}-0.png" for letter in "abc"]
    store.save_all([(name, name.encode()) for name in names])
    assert done == ["sync", *["write"] * 3, *["sync"] * 4]
    assert [(tmp_path / "images" / name).read_bytes().decode() for name in names] == names


def test_several_that_fail_leave_nothing_half_done(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def first_only(self: Path, data: bytes) -> int:
        if data == b"2":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", first_only)
    with pytest.raises(StorageFailed, match="No space left"):
        store.save_all([(NAME, b"1"), (NAME.replace("a", "b"), b"2")])
    assert not [path for path in (tmp_path / "images").rglob("*") if path.is_file()]


def test_day_is_that_of_the_arrival() -> None:
    assert day(1769903999.5) == "2026-01-31"
