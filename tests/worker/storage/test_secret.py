from pathlib import Path

from worker.storage.secret import cluster_secrets, other_secrets, shared_secret


def test_secret_is_made_once_for_all_workers(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    first = shared_secret(path)
    assert shared_secret(path) == first
    assert len(first) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_first_secret_of_a_cluster_signs_and_the_others_verify(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"first")
    assert cluster_secrets(path) == (b"first",)
    other_secrets(path).write_text(f"{b'other'.hex()}\n{b'first'.hex()}\n", encoding="ascii")
    assert cluster_secrets(path) == (b"first", b"other")
