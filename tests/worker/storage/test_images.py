import errno
import fcntl
import os
import shutil
import time
from pathlib import Path

import pytest

from worker.errors import StorageFailed
from worker.storage.images import ImageStore, Signer, day, link_secret

NAME = f"2026-01-31/{'a' * 32}-0.png"


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images", ttl_s=100.0, keep_bytes=1000)


def test_secret_is_made_once_for_all_workers(tmp_path: Path) -> None:
    path = tmp_path / "link-secret"
    first = link_secret(path)
    assert link_secret(path) == first
    assert len(first) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_signature_covers_name_and_time() -> None:
    signer = Signer(b"secret")
    signature = signer.sign("a.png", 100)
    assert signer.valid("a.png", "100", signature)
    assert not signer.valid("b.png", "100", signature)
    assert not signer.valid("a.png", "101", signature)
    assert not Signer(b"other").valid("a.png", "100", signature)


@pytest.mark.parametrize(
    ("expires", "signature"), [("", ""), ("x", "y"), ("9" * 99, "é"), ("1", "")]
)
def test_nonsense_is_no_signature(expires: str, signature: str) -> None:
    assert not Signer(b"secret").valid("a.png", expires, signature)


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


def test_old_pictures_are_deleted(store: ImageStore, tmp_path: Path) -> None:
    store.save(NAME, b"x")
    young = NAME.replace("-0.", "-1.")
    store.save(young, b"x")
    os.utime(tmp_path / "images" / NAME, (0, time.time() - 101))
    assert store.prune(tmp_path / "lock") == 1
    assert (store.holds(NAME), store.holds(young)) == (False, True)


def test_oldest_pictures_go_when_there_are_too_many(store: ImageStore, tmp_path: Path) -> None:
    now = time.time()
    for k in range(4):
        store.save(NAME.replace("-0.", f"-{k}."), b"x" * 400)
        os.utime(tmp_path / "images" / NAME.replace("-0.", f"-{k}."), (0, now - 10 * k))
    assert store.prune(tmp_path / "lock") == 2
    assert store.holds(NAME)
    assert not store.holds(NAME.replace("-0.", "-3."))


def test_empty_days_and_abandoned_files_are_removed(store: ImageStore, tmp_path: Path) -> None:
    store.save(NAME, b"x")
    (tmp_path / "images" / NAME).unlink()
    abandoned = tmp_path / "images" / "2026-01-31" / ".x.png.1"
    abandoned.write_bytes(b"half")
    os.utime(abandoned, (0, time.time() - 3600))
    assert store.prune(tmp_path / "lock") == 1
    assert list((tmp_path / "images").iterdir()) == []


def test_one_worker_prunes_at_a_time(store: ImageStore, tmp_path: Path) -> None:
    store.save(NAME, b"x")
    os.utime(tmp_path / "images" / NAME, (0, 0))
    with (tmp_path / "lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert store.prune(tmp_path / "lock") == 0
    assert store.prune(tmp_path / "lock") == 1


def test_day_is_that_of_the_arrival() -> None:
    assert day(1769903999.5) == "2026-01-31"
