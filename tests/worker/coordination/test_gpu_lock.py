import fcntl
from pathlib import Path

import pytest

from tests.worker.conftest import settings_in
from worker.bounds import GIB
from worker.coordination import gpu_lock
from worker.coordination.gpu_lock import CardBusy


def test_cpu_needs_no_card(home: Path) -> None:
    with gpu_lock.card(settings_in(home)):
        assert list(home.iterdir()) == []


def test_memory_is_waited_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "run").mkdir()
    monkeypatch.setattr(gpu_lock, "_POLL_S", 0.001)
    free = iter([1 * GIB, 3 * GIB, 8 * GIB])
    settings = settings_in(home, device="cuda:0", vram_limit_gib=8)
    with gpu_lock.card(settings, lambda: next(free)):
        assert next(free, None) is None


def test_card_without_room_is_told_in_time(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "run").mkdir()
    monkeypatch.setattr(gpu_lock, "_POLL_S", 0.001)
    settings = settings_in(home, device="GPU-1", vram_limit_gib=8, load_allowance_s=0.05)
    with pytest.raises(CardBusy, match="8 GiB free"), gpu_lock.card(settings, lambda: GIB):
        pass


def test_one_worker_loads_at_a_time(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "run").mkdir()
    monkeypatch.setattr(gpu_lock, "_POLL_S", 0.001)
    settings = settings_in(home, device="cuda:0", load_allowance_s=0.05)
    with (home / "run" / "card-cuda:0.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(CardBusy, match="another worker"), gpu_lock.card(settings):
            pass
    with gpu_lock.card(settings):
        pass


def test_uuid_is_made_the_only_visible_card(monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr("os.environ", environment)
    gpu_lock.pin("MIG-1")
    assert environment == {"CUDA_VISIBLE_DEVICES": "MIG-1"}
