import os
from pathlib import Path

import pytest

from worker.bounds import UNDELIVERED_S
from worker.storage import undelivered
from worker.storage.undelivered import MAX_OF_ONE, Answer, Held, Undelivered

ANSWER = Answer("0" * 32, {"X-Queue-Ms": "3"}, b'{"data":\n[]}')


def name(what: int, owner: str = "a") -> str:
    return f"{owner * 16}-{what:032x}"


def held(of: Undelivered, what: int = 1, owner: str = "a") -> Held:
    found = of.hold(name(what, owner))
    assert found is not None
    return found


@pytest.fixture
def kept(tmp_path: Path) -> Undelivered:
    return Undelivered(tmp_path / "undelivered")


def test_one_takes_what_was_put(kept: Undelivered) -> None:
    coming = held(kept)
    coming.put(ANSWER)
    coming.drop()
    assert not kept.is_coming(name(1))
    assert [kept.take(name(1)), kept.take(name(1))] == [ANSWER, None]


def test_it_is_coming_until_it_is_dropped_and_who_draws_learns_of_it(kept: Undelivered) -> None:
    coming = held(kept)
    os.utime(coming._fd, (1, 1))
    assert coming.unasked_s() > 1000
    assert kept.is_coming(name(1))
    assert coming.unasked_s() < 1000
    assert kept.hold(name(1)) is None
    coming.drop()
    assert not kept.is_coming(name(1))


def test_it_comes_no_more_when_the_worker_has_died(kept: Undelivered) -> None:
    coming = held(kept)
    os.close(coming._fd)  # as the kernel does
    assert not kept.is_coming(name(1))
    held(kept).drop()


def test_one_owner_leaves_room_for_others(kept: Undelivered) -> None:
    mine = [held(kept, what) for what in range(MAX_OF_ONE)]
    assert kept.hold(name(99)) is None
    held(kept, 99, "b").drop()
    mine[0].drop()
    held(kept, 99).drop()
    for each in mine[1:]:
        each.drop()


def test_what_is_too_old_is_nobodys(kept: Undelivered, tmp_path: Path) -> None:
    coming = held(kept)
    coming.put(ANSWER)
    coming.drop()
    path = tmp_path / "undelivered" / f"{name(1)}.answer"
    os.utime(path, (path.stat().st_mtime - UNDELIVERED_S - 1,) * 2)
    assert kept.take(name(1)) is None
    assert list((tmp_path / "undelivered").iterdir()) == []


def test_all_together_are_bounded(kept: Undelivered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undelivered, "MAX_BYTES", len(ANSWER.body))
    for what in (1, 2):
        coming = held(kept, what)
        coming.put(ANSWER)
        coming.drop()
    assert [kept.take(name(1)), kept.take(name(2))] == [ANSWER, None]
