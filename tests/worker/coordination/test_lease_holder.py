import os
from pathlib import Path

from worker.coordination.lease_holder import host_of, is_dead, this_process


def test_a_holder_tells_its_host() -> None:
    assert host_of(this_process("w1", "a")) == "a"
    assert host_of(this_process("w1")) == ""


def test_only_the_dead_are_dead() -> None:
    mine = this_process("w1", "a")
    assert not is_dead(mine)
    here, _, at, name = mine.split("/")
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    assert is_dead(f"{here}/{child}/{at}/{name}")


def test_of_another_container_nothing_is_certain() -> None:
    here, _, at, name = this_process("w1", "a").split("/")
    boot, _, space = here.partition(".")
    assert space == str(Path("/proc/self/ns/pid").stat().st_ino)
    # The same machine, by its boot, and a number that is nobody's here.
    assert not is_dead(f"{boot}.1/4194999/{at}/{name}")
    assert not is_dead(f"{boot}/4194999/{at}/{name}"), "of an earlier version"
