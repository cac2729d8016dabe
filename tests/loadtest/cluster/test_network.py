"""Machines of a proof's network reach each other until they are cut off, and leave nothing."""

import subprocess
from collections.abc import Iterator

import pytest

from loadtest.cluster.network import OWN_ADDRESS, Namespace, Network, NoNetwork, network

pytestmark = pytest.mark.xdist_group("network")


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    try:
        with network("a", "b") as made:
            yield made
    except NoNetwork as problem:
        pytest.skip(f"no namespaces here: {problem}")


def reaches(machine: Namespace, address: str) -> bool:
    ping = [*machine.prefix, "ping", "-c", "1", "-W", "1", address]
    return subprocess.run(ping, capture_output=True, check=False).returncode == 0


def test_machines_reach_each_other_and_whoever_runs_them(net: Network) -> None:
    assert reaches(net["a"], net["b"].address)
    assert reaches(net["a"], OWN_ADDRESS)


@pytest.mark.parametrize("direction", ["both", "in", "out"])
def test_a_machine_is_cut_off_and_comes_back(net: Network, direction: str) -> None:
    net["b"].drop(direction)  # type: ignore[arg-type]
    assert not reaches(net["a"], net["b"].address)
    net["b"].heal()
    assert reaches(net["a"], net["b"].address)


def test_a_cable_is_pulled_and_plugged_in(net: Network) -> None:
    net["b"].unplug()
    assert not reaches(net["a"], net["b"].address)
    net["b"].plug()
    assert reaches(net["a"], net["b"].address)


def test_every_process_of_a_machine_can_be_killed_and_no_other(net: Network) -> None:
    here = subprocess.Popen([*net["a"].prefix, "sleep", "60"])
    there = subprocess.Popen([*net["b"].prefix, "sleep", "60"])
    while not (net["a"].pids() and net["b"].pids()):
        pass
    assert net["a"].kill_all() == 1
    assert here.wait(10) == -9
    assert there.poll() is None
    net["b"].kill_all()
    there.wait(10)


def test_nothing_is_left_of_it(net: Network) -> None:
    net.end()
    assert "zi-" not in subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout
    assert "zi-" not in subprocess.run(["ip", "link"], capture_output=True, text=True).stdout
