from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from tests.worker.storage.test_jobs import Store
from tests.worker.storage.test_races import PATIENCE_S, PROCESSES, at_once
from worker.storage import hosts
from worker.storage.hosts import Host, HostReport

HOSTS = 20
ROUNDS = 30
REPORT = HostReport(
    id="a",
    address="10.0.0.7:7862",
    role="both",
    version="1.0.0",
    models=("z-image",),
    workers=4,
    ready=4,
    queued=2,
    running=3,
    wait_s=1.5,
    skew_s=0.01,
    state="busy",
    facts={"gpus": {"H100": 4}, "front": "工作室"},
)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = Store(url)
    yield made
    made.engine.dispose()


def write(store: Store, now: float, **changes: Any) -> None:
    store(hosts.write, replace(REPORT, **changes), now)


def host(store: Store, id: str = "a") -> Host:
    return {each.id: each for each in store(hosts.read_all)}[id]


def test_a_host_is_read_as_it_wrote(store: Store) -> None:
    write(store, 100.0)
    said = {name: getattr(host(store), name) for name in vars(REPORT)}
    assert said == vars(REPORT)
    assert (host(store).joined_at, host(store).at, host(store).wanted) == (100.0, 100.0, "in")


def test_a_host_that_writes_again_leaves_what_is_wanted_and_when_it_joined(store: Store) -> None:
    write(store, 100.0)
    assert store(hosts.want, "a", "out", "new cards", 101.0)
    assert store(hosts.set_lost, "a", 99.0)
    write(store, 102.0, queued=7)
    seen = host(store)
    assert (seen.queued, seen.at, seen.joined_at) == (7, 102.0, 100.0)
    assert (seen.wanted, seen.wanted_reason, seen.wanted_at) == ("out", "new cards", 101.0)
    assert seen.lost_at == 99.0


def test_a_removed_host_that_writes_stays_removed(store: Store) -> None:
    write(store, 100.0)
    store(hosts.want, "a", "removed", "", 101.0)
    write(store, 102.0)
    assert host(store).wanted == "removed"


def test_since_is_when_the_state_changed(store: Store) -> None:
    for now, state in ((100.0, "ready"), (102.0, "ready"), (104.0, "busy"), (106.0, "busy")):
        write(store, now, state=state)
    assert host(store).since == 104.0


def test_wanting_again_changes_the_reason_and_not_since_when(store: Store) -> None:
    write(store, 100.0)
    store(hosts.want, "a", "out", "cards", 101.0)
    store(hosts.want, "a", "out", "cards and fans", 150.0)
    assert (host(store).wanted_reason, host(store).wanted_at) == ("cards and fans", 101.0)


def test_nobody_wants_anything_of_a_host_that_is_not_there(store: Store) -> None:
    assert not store(hosts.want, "b", "out", "", 101.0)
    assert store(hosts.read_all) == []


def test_a_lost_host_is_lost_since_it_was_first_said_until_it_is_heard(store: Store) -> None:
    write(store, 100.0)
    assert [store(hosts.set_lost, "a", at) for at in (103.0, 105.0)] == [True, False]
    assert host(store).lost_at == 103.0
    assert [store(hosts.set_lost, "a", None) for _ in range(2)] == [True, False]
    assert host(store).lost_at is None


def wish(number: int, round: int) -> hosts.Wanted:
    return "out" if (number + round) % 2 else "in"


def take_part(url: str, process: int) -> None:
    """Two operators, of half of the hosts each; the others write for all hosts, turn by turn."""
    store = Store(url, PATIENCE_S)
    writers = PROCESSES - 2
    for round in range(ROUNDS):
        for number in range(HOSTS):
            id = f"h{number}"
            if process < 2 and number % 2 == process:
                assert store(hosts.want, id, wish(number, round), f"round {round}", 100.0 + round)
            elif process >= 2 and number % writers == process - 2:
                write(store, 100.0 + round, id=id, queued=round)
    store.engine.dispose()


def test_hosts_that_write_and_operators_who_decide_lose_nothing_of_each_other(url: str) -> None:
    store = Store(url, PATIENCE_S)
    for number in range(HOSTS):
        write(store, 99.0, id=f"h{number}")
    at_once(partial(take_part, url))
    last = ROUNDS - 1
    for number in range(HOSTS):
        seen = host(store, f"h{number}")
        assert (seen.wanted, seen.wanted_reason) == (wish(number, last), f"round {last}")
        assert (seen.queued, seen.at, seen.joined_at) == (last, 100.0 + last, 99.0)
    store.engine.dispose()
