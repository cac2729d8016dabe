from pathlib import Path
from typing import Any

import pytest

from deploy.cluster.report import STALE_S, Cell, fresh, is_empty, report
from tests.deploy.cluster.cells import NOW, cell, settings, worker
from worker.storage.hosts import HostReport

OUT = worker(open=False, state="loading")


def said(told: Cell | None, **changes: Any) -> HostReport:
    values = {"wanted": "in", "is_drained": False, "skew_s": 0.0, **changes}
    return report(settings(Path("/nowhere")), told, **values)


def test_a_host_says_what_its_guard_has_written() -> None:
    busy = worker(state="busy", running=2, queued=3, predicted_wait_s=4.0)
    told = said(cell(busy, worker(queued=1, predicted_wait_s=1.5), OUT), skew_s=0.25)
    assert (told.id, told.address, told.role, told.workers) == ("a", "10.0.0.7:7862", "both", 2)
    assert (told.ready, told.queued, told.running, told.wait_s) == (2, 4, 2, 1.5)
    assert (told.state, told.skew_s, told.facts) == (
        "busy",
        0.25,
        {"devices": {"H100": 3}, "workers": ["w1"] * 3},
    )


def test_what_waits_outside_the_pool_is_no_wait_of_the_host() -> None:
    assert said(cell(worker(open=False, predicted_wait_s=0.5), worker())).wait_s == 0.0


@pytest.mark.parametrize(
    ("workers", "state"),
    [
        ([worker(), OUT], "ready"),
        ([worker(running=1), OUT], "busy"),
        ([OUT, worker(open=False, state="dead")], "loading"),
        ([worker(open=False, state="fatal"), worker(open=False, state="dead")], "fatal"),
        ([], "dead"),
    ],
)
def test_a_host_is_as_the_best_of_its_workers(workers: list[dict[str, Any]], state: str) -> None:
    assert said(cell(*workers)).state == state


def test_a_host_whose_guard_says_nothing_is_silent() -> None:
    assert (said(None).state, said(None).ready) == ("silent", 0)


def test_a_host_that_is_wanted_out_drains_until_it_was_empty_for_long_enough() -> None:
    told = cell(worker())
    assert said(told, wanted="out").state == "draining"
    assert said(told, wanted="out", is_drained=True).state == "drained"
    assert said(told, wanted="in", is_drained=True).state == "ready"


def test_a_front_alone_needs_no_workers_to_be_ready() -> None:
    alone = settings(Path("/nowhere"), role="front", workers=0)
    told = report(alone, cell(), wanted="in", is_drained=False, skew_s=0.0)
    assert told.state == "ready"


def test_a_front_passes_on_what_it_hears_of_hosts() -> None:
    hosts = [
        {"id": "b", "state": "ready", "silent_s": 0.1, "open": True},
        {"id": "c", "state": "lost", "silent_s": 9.0},
        {"id": "d", "state": "unknown", "silent_s": None},
    ]
    assert said(cell(worker(), hosts=hosts)).facts["hears"] == {
        "b": {"silent_s": 0.1, "open": True},
        "c": {"silent_s": 9.0, "open": False},
    }


def test_what_a_dead_guard_has_left_says_nothing() -> None:
    left = cell(worker(), at=NOW - STALE_S - 0.1)
    assert fresh(left, NOW) is None
    assert fresh(left, NOW - 1) is left


def test_empty_is_what_neither_waits_nor_draws() -> None:
    assert is_empty(cell(worker(), OUT))
    assert not is_empty(cell(worker(), worker(open=False, queued=1)))
    assert not is_empty(cell(worker(running=1)))
    assert not is_empty(None)
