import errno
from pathlib import Path

import pytest

from worker.storage.replies import MIN_BYTES, ReplyStore

LARGE = b"x" * MIN_BYTES


def test_large_answer_becomes_a_file_of_its_own_for_each_worker(tmp_path: Path) -> None:
    names = [ReplyStore(tmp_path, worker).save("id", LARGE) for worker in ("w1", "w2")]
    assert len(set(names)) == 2
    assert [(tmp_path / str(name)).read_bytes() for name in names] == [LARGE, LARGE]


def test_small_answer_and_a_cell_without_nginx_use_the_socket(tmp_path: Path) -> None:
    assert ReplyStore(tmp_path, "w1").save("id", LARGE[1:]) is None
    assert ReplyStore(None, "w1").save("id", LARGE) is None
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_nothing_and_falls_back_to_the_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert ReplyStore(tmp_path, "w1").save("id", LARGE) is None
    assert list(tmp_path.iterdir()) == []
