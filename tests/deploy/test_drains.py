import os
import subprocess
from pathlib import Path

import pytest

from deploy import drains
from deploy.host import processes
from deploy.layout import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path, tmp_path / "run")
    layout.create()
    return layout


def flags(layout: Layout) -> list[str]:
    return sorted(path.name for path in layout.drained_dir.iterdir())


def left_by_a_dead_command(layout: Layout, worker: str, **changes: object) -> None:
    with subprocess.Popen(["sleep", "60"]) as command:
        owner = processes.Identity.of(command.pid)
        command.kill()
    drain = drains.Drain(worker, "restart", 1.0, processes.Identity(**{**vars(owner), **changes}))
    drains._write(layout, drain)


def test_drain_of_a_command_ends_with_it(layout: Layout) -> None:
    with drains.held(layout, "w1", "restart") as by_hand:
        assert (by_hand, flags(layout)) == (False, ["w1"])
        assert drains.by_hand(layout) == {}
        assert drains.clear_left(layout) == []  # its owner lives
    assert flags(layout) == []


def test_drain_of_a_command_ends_with_its_failure(layout: Layout) -> None:
    with pytest.raises(KeyboardInterrupt), drains.held(layout, "w1", "restart"):
        raise KeyboardInterrupt
    assert flags(layout) == []


def test_drain_by_hand_outlives_commands(layout: Layout) -> None:
    drains.put(layout, "w1")
    layout.drained_flag("w2").touch()  # as of an older version, or of a shell
    for worker in ("w1", "w2"):
        with drains.held(layout, worker, "restart") as by_hand:
            assert by_hand
    assert drains.clear_left(layout) == []
    assert sorted(drains.by_hand(layout)) == flags(layout) == ["w1", "w2"]


def test_drain_of_a_killed_command_is_taken_away(layout: Layout) -> None:
    drains.put(layout, "w1")
    left_by_a_dead_command(layout, "w2")
    assert [(d.worker, d.why) for d in drains.clear_left(layout)] == [("w2", "restart")]
    assert flags(layout) == ["w1"]


@pytest.mark.parametrize("changes", [{"boot": "another"}, {"started": 1}])
def test_somebody_else_with_the_number_of_the_owner_is_not_the_owner(
    layout: Layout, changes: dict[str, object]
) -> None:
    left_by_a_dead_command(layout, "w1", pid=os.getpid(), **changes)
    assert [d.worker for d in drains.clear_left(layout)] == ["w1"]
