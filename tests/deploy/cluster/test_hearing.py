from deploy.cluster.hearing import FRESH_S, changes_of_lost, is_shut_out
from tests.deploy.cluster.cells import NOW, front, host
from worker.storage.hosts import Host

LOST_S = 1.5
HEARD, SILENT = (0.2, True), (20.0, False)


def changes(*rows: Host) -> dict[str, float | None]:
    return changes_of_lost(rows, NOW, LOST_S)


def test_a_host_that_no_front_hears_is_lost_since_the_last_of_them_heard_it() -> None:
    fronts = [
        front("f1", {"a": SILENT, "b": HEARD}),
        front("f2", {"a": (12.0, False), "b": HEARD}),
    ]
    assert changes(*fronts, host("a"), host("b")) == {"a": NOW - 12.0}


def test_a_host_that_one_front_hears_is_not_lost() -> None:
    fronts = [front("f1", {"a": SILENT, "b": HEARD}), front("f2", {"a": HEARD, "b": HEARD})]
    assert changes(*fronts, host("a"), host("b")) == {}


def test_a_host_that_is_heard_again_is_lost_no_more() -> None:
    rows = front("f1", {"a": HEARD}), host("a", lost_at=NOW - 60)
    assert changes(*rows) == {"a": None}


def test_a_front_that_hears_nobody_says_nothing_of_hosts() -> None:
    cut_off = front("f1", {"a": SILENT, "b": SILENT})
    assert changes(cut_off, host("a"), host("b")) == {}
    assert changes(cut_off, host("a"), host("b", lost_at=NOW - 60)) == {}
    hears = front("f2", {"a": SILENT, "b": HEARD})
    assert changes(cut_off, hears, host("a"), host("b")) == {"a": NOW - 20.0}


def test_a_front_that_writes_no_more_says_nothing_of_hosts() -> None:
    gone = front("f1", {"a": SILENT, "b": HEARD}, at=NOW - FRESH_S - 1)
    assert changes(gone, host("a"), host("b")) == {}


def test_a_host_that_fronts_do_not_know_stays_as_it_is() -> None:
    assert changes(front("f1", {"b": HEARD}), host("b"), host("new")) == {}


def test_a_host_is_shut_out_once_no_front_lets_requests_in() -> None:
    closed = front("f1", {"a": (0.2, False)})
    assert is_shut_out([closed, host("a")], "a", NOW)
    assert not is_shut_out([closed, front("f2", {"a": HEARD}), host("a")], "a", NOW)
    assert is_shut_out([host("a")], "a", NOW)
