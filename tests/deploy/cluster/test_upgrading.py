"""A version that is wanted of a host, with a real process in place of ``zimage upgrade``."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.cluster.settings import MembershipSettings
from deploy.cluster.upgrading import Upgrades
from deploy.host.processes import Identity
from tests.deploy.cluster import cells
from tests.deploy.processes import PATIENCE_S, wait_until

Settings = Callable[[str], MembershipSettings]
Make = Callable[[MembershipSettings], Upgrades]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Whose ``zimage upgrade`` is a script of the shell; $1 is the version."""

    def of(script: str) -> MembershipSettings:
        file = tmp_path / "zimage"
        file.write_text(f"#!/bin/sh\ncd {tmp_path}\n{script}\n")
        file.chmod(0o755)
        return cells.settings(tmp_path, upgrade_command=(str(file),))

    return of


@pytest.fixture
def make() -> Iterator[Make]:
    """Each with its own memory, as after a restart; their processes have ended with the test."""
    made: list[Upgrades] = []

    def one(told: MembershipSettings) -> Upgrades:
        made.append(Upgrades(told))
        return made[-1]

    yield one
    for each in made:
        for process in each.begun:
            process.wait(PATIENCE_S)


def wanted(version: str = "1.1.0", at: float = 5.0) -> Any:
    return cells.host("a", wanted_version=version, wanted_version_at=at)


def ended(upgrades: Upgrades, host: Any) -> dict[str, Any]:
    """What is told once it is no longer under way."""

    def told() -> dict[str, Any] | None:
        said = upgrades.follow(host)
        return said if said and said["state"] != "under way" else None

    found: dict[str, Any] = wait_until(told, "ended")
    return found


def test_nothing_wanted_is_nothing_told(settings: Settings, make: Make) -> None:
    assert make(settings("touch ran")).follow(cells.host("a")) is None


def test_what_is_wanted_is_done_once_and_told(
    settings: Settings, make: Make, tmp_path: Path
) -> None:
    upgrades = make(settings('echo "$1" >> ran'))
    assert upgrades.follow(wanted()) == {
        "version": "1.1.0",
        "at": 5.0,
        "state": "under way",
        "text": "",
    }
    assert ended(upgrades, wanted())["state"] == "done"
    assert ended(upgrades, wanted())["state"] == "done"
    assert (tmp_path / "ran").read_text() == "1.1.0\n"


def test_what_failed_says_why_and_is_tried_again_when_it_is_wanted_again(
    settings: Settings, make: Make, tmp_path: Path
) -> None:
    upgrades = make(settings('echo ran >> ran; echo "1.1.0 was refused" >&2; exit 1'))
    said = ended(upgrades, wanted())
    assert (said["state"], said["text"]) == ("failed", "1.1.0 was refused")
    assert ended(upgrades, wanted(at=9.0))["at"] == 9.0
    assert (tmp_path / "ran").read_text() == "ran\n" * 2


def test_whoever_comes_after_a_restart_finds_what_came_of_it(
    settings: Settings, make: Make, tmp_path: Path
) -> None:
    told = settings("touch begun; while ! [ -e go ]; do sleep 0.05; done")
    first = make(told)
    first.follow(wanted())
    wait_until((tmp_path / "begun").exists, "begun")
    second = make(told)
    said = second.follow(wanted())
    assert said is not None
    assert said["state"] == "under way"
    (tmp_path / "go").touch()
    assert ended(second, wanted())["state"] == "done"
    first.follow(wanted())  # it takes its child's end


def test_one_that_was_killed_has_failed(settings: Settings, make: Make, tmp_path: Path) -> None:
    upgrades = make(settings("echo $PPID > pid; sleep 60"))
    upgrades.follow(wanted())
    pid = int(wait_until(lambda: _text(tmp_path / "pid"), "begun"))
    os.killpg(pid, signal.SIGKILL)
    assert "cut short" in ended(upgrades, wanted())["text"]


def test_one_that_ends_while_it_is_looked_for_was_not_killed(
    settings: Settings, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = settings("touch begun; while ! [ -e go ]; do sleep 0.05; done")
    first = make(told)
    first.follow(wanted())
    wait_until((tmp_path / "begun").exists, "begun")

    def has_just_ended(_: Identity) -> bool:
        (tmp_path / "go").touch()
        first.begun[0].wait(PATIENCE_S)
        return False

    monkeypatch.setattr(Identity, "alive", property(has_just_ended))
    said = make(told).follow(wanted())
    assert said is not None
    assert said["state"] == "done"


def test_a_host_that_has_the_version_or_may_not_take_it_begins_nothing(
    settings: Settings, make: Make, tmp_path: Path
) -> None:
    told = settings("touch ran")
    assert ended(make(told), wanted(told.version))["state"] == "done"
    foreign = told.model_copy(update={"versions_dir": tmp_path / "of-root"})
    said = ended(make(foreign), wanted(at=9.0))
    assert (said["state"], "zimage upgrade 1.1.0" in said["text"]) == ("failed", True)
    assert not (tmp_path / "ran").exists()


def test_it_outlives_the_group_of_the_program_that_began_it(
    settings: Settings, make: Make, tmp_path: Path
) -> None:
    told = settings("touch begun; while ! [ -e go ]; do sleep 0.05; done; touch ran")
    file = tmp_path / "membership.json"
    file.write_text(told.model_dump_json())
    code = (
        "import sys, time\n"
        "from deploy.cluster import settings, upgrading\n"
        "from tests.deploy.cluster.test_upgrading import wanted\n"
        "from pathlib import Path\n"
        f"upgrading.Upgrades(settings.load(Path({str(file)!r}))).follow(wanted())\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as program:
        wait_until((tmp_path / "begun").exists, "begun")
        os.killpg(program.pid, signal.SIGKILL)
        program.wait(PATIENCE_S)
    (tmp_path / "go").touch()
    wait_until((tmp_path / "ran").exists, "done")
    assert ended(make(told), wanted())["state"] == "done"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""
