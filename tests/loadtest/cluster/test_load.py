"""A refusal is honest where whoever comes again when he is told to is served then."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from loadtest.cluster import load as cluster_load
from loadtest.cluster.load import Load
from loadtest.record import Record

OK = {"result": "ok"}
REFUSED = {"result": "refused", "status": 503, "retry_after_s": 0.001}
FAILED = {"result": "failed", "status": 503, "error": "HTTP 503 without reason or Retry-After"}


def load_of(*answers: dict[str, Any], may_be_refused: bool = True) -> Load:
    """What one user has seen who was answered so."""
    told: Iterator[Record] = (Record(0.0, "user", "draw", **answer) for answer in answers)
    load = Load("", "", may_be_refused=may_be_refused)
    load.records.append(load.answered(lambda _: next(told), {}))
    return load


def test_whoever_is_served_when_he_comes_again_was_refused_honestly() -> None:
    load = load_of(REFUSED, REFUSED, OK)
    assert (load.lost, len(load.came_again), len(load.refusals)) == ([], 1, 2)


def test_whoever_is_refused_each_time_is_lost() -> None:
    load = load_of(*[REFUSED] * 6, OK)
    assert (len(load.lost), load.came_again, len(load.refusals)) == (1, [], 6)


def test_whoever_is_not_told_when_to_come_again_is_lost() -> None:
    load = load_of(REFUSED, FAILED)
    assert (len(load.lost), load.came_again) == (1, [])


def test_whoever_is_refused_where_there_was_room_is_lost() -> None:
    load = load_of(REFUSED, OK, may_be_refused=False)
    assert (len(load.lost), len(load.refusals)) == (1, 1)


def test_an_answer_at_once_is_neither() -> None:
    load = load_of(OK)
    assert (load.lost, load.came_again, load.refusals) == ([], [], [])


def test_whoever_still_waits_when_the_load_is_over_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster_load, "_END_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        load = Load(f"http://127.0.0.1:{silent.getsockname()[1]}", "", waiting=1, following=1)
        with load.running():
            pass
        assert [record.user for record in load.lost] == ["user 0", "user 1"]
