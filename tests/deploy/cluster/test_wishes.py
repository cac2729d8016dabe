"""Who may be taken out, on a real PostgreSQL."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from deploy.cluster import wishes
from deploy.cluster.wishes import Refused
from tests.deploy.cluster import cells
from tests.worker.storage.test_jobs import Store
from tests.worker.storage.test_races import at_once
from worker.storage import hosts
from worker.storage.database import clock
from worker.storage.hosts import HostReport


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = Store(url)
    yield made
    made.engine.dispose()


def write(store: Store, id: str, ago_s: float = 0.0, **changes: Any) -> None:
    said = vars(cells.host(id, **changes))
    report = HostReport(**{name: said[name] for name in HostReport.__dataclass_fields__})
    store(lambda connection: hosts.write(connection, report, clock(connection) - ago_s))


def wanted(store: Store) -> dict[str, str]:
    return {host.id: host.wanted for host in store(hosts.read_all)}


def test_one_of_two_is_taken_out_and_let_in_again_as_often_as_one_likes(store: Store) -> None:
    write(store, "a")
    write(store, "b")
    since = [store(wishes.drain, "a", "cards") for _ in range(2)]
    assert since[0] == since[1]
    assert wanted(store) == {"a": "out", "b": "in"}
    [a, _] = store(hosts.read_all)
    assert a.wanted_reason == "cards"
    for _ in range(2):
        store(wishes.undrain, "a")
    assert wanted(store) == {"a": "in", "b": "in"}


@pytest.mark.parametrize("take_out", [wishes.drain, wishes.remove])
@pytest.mark.parametrize(
    "other",
    [
        {"is_out": True},
        {"is_lost": True},
        {"ready": 0},
        {"ago_s": 60.0},
        {"role": "front", "workers": 0},
    ],
)
def test_the_last_that_draws_stays_unless_it_is_forced(
    store: Store, other: dict[str, Any], take_out: Callable[..., float]
) -> None:
    write(store, "a")
    write(store, "b", **{name: value for name, value in other.items() if name[:3] != "is_"})
    if "is_out" in other:
        store(hosts.want, "b", "out", "", 1.0)
    if "is_lost" in other:
        store(hosts.set_lost, "b", 1.0)
    with pytest.raises(Refused, match="a is the last host that draws"):
        store(take_out, "a", "")
    assert wanted(store)["a"] == "in"
    store(take_out, "a", "", force=True)
    assert wanted(store)["a"] != "in"


def test_a_host_that_draws_nothing_may_go_also_when_no_other_draws(store: Store) -> None:
    write(store, "a", ready=0)
    store(wishes.drain, "a", "")
    assert wanted(store) == {"a": "out"}


def test_a_front_is_not_drained_but_removed(store: Store) -> None:
    write(store, "f", role="front", workers=0, ready=0)
    with pytest.raises(Refused, match="front and draws nothing"):
        store(wishes.drain, "f", "")
    store(wishes.remove, "f", "")
    with pytest.raises(Refused, match="joining again"):
        store(wishes.undrain, "f")
    with pytest.raises(Refused, match="was removed"):
        store(wishes.drain, "f", "")


def test_an_unknown_name_is_told_what_it_may_mean(store: Store) -> None:
    write(store, "gpu-1")
    write(store, "gone", ready=0)
    store(wishes.remove, "gone", "")
    with pytest.raises(Refused, match="did you mean gpu-1"):
        store(wishes.drain, "gpu1", "")
    with pytest.raises(Refused, match=r"no host x; there are: gpu-1$"):
        store(wishes.undrain, "x")


def drain_own(url: str, number: int) -> bool:
    store = Store(url)
    try:
        store(wishes.drain, f"h{number}", "")
    except Refused:
        return False
    finally:
        store.engine.dispose()
    return True


def test_operators_who_take_out_a_host_each_at_once_leave_one(store: Store, url: str) -> None:
    for number in range(6):
        write(store, f"h{number}")
    assert sum(at_once(partial(drain_own, url))) == 5
    assert sorted(wanted(store).values()) == ["in", *["out"] * 5]


def test_one_host_at_a_time_takes_another_version(store: Store) -> None:
    for id in ("a", "b"):
        write(store, id)
    at = store(wishes.upgrade, "a", "1.1.0")
    write(store, "a", facts={"upgrade": {"at": at, "state": "under way"}})
    with pytest.raises(Refused, match=r"a is on its way to 1\.1\.0"):
        store(wishes.upgrade, "b", "1.1.0")
    write(store, "a", facts={"upgrade": {"at": at, "state": "done"}})
    store(wishes.upgrade, "b", "1.1.0")
    [_, b] = store(hosts.read_all)
    assert (b.wanted_version, b.wanted) == ("1.1.0", "in")
