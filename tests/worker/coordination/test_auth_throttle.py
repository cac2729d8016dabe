from pathlib import Path

import pytest

from worker.coordination.auth_throttle import AuthThrottle


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [600.0]
    monkeypatch.setattr("worker.coordination.auth_throttle.time.time", lambda: now[0])
    return now


def test_the_limit_holds_over_all_workers(tmp_path: Path, clock: list[float]) -> None:
    workers = [AuthThrottle(tmp_path / "denials", 4) for _ in range(2)]
    assert [workers[i % 2].add("10.0.0.1") for i in range(4)] == [0.0] * 4
    clock[0] = 615.0
    assert [w.add("10.0.0.1") for w in workers] == [45.0, 45.0]
    assert workers[0].add("10.0.0.2") == 0.0


def test_the_next_minute_begins_anew(tmp_path: Path, clock: list[float]) -> None:
    one = AuthThrottle(tmp_path / "denials", 1)
    assert (one.add("a"), one.add("a")) == (0.0, 60.0)
    clock[0] = 660.0
    assert (one.add("a"), one.add("a")) == (0.0, 60.0)


def test_addresses_of_one_ipv6_network_share_the_limit(tmp_path: Path, clock: list[float]) -> None:
    some = AuthThrottle(tmp_path / "denials", 3)
    assert [some.add(f"2001:db8:0:7:{k:x}::9") for k in range(4)] == [0.0, 0.0, 0.0, 60.0]
    assert some.add("2001:db8:0:8::9") == 0.0
