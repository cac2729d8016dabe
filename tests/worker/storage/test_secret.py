from pathlib import Path

from worker.storage.secret import shared_secret


def test_secret_is_made_once_for_all_workers(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    first = shared_secret(path)
    assert shared_secret(path) == first
    assert len(first) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
