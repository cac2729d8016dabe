import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cell import CellError
from deploy.rollout.releases import Releases, commands_of
from tests.deploy.processes import wait_until


@pytest.fixture
def installed(tmp_path: Path) -> Releases:
    """A checkout with three releases in it, none of them current."""
    made = Releases(tmp_path)
    for folder in (tmp_path / ".venv", *(made.folder(v) for v in ("1.0", "1.1", "1.2"))):
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").symlink_to(sys.executable)
    for version in ("1.0", "1.1", "1.2"):
        made.note(version, version * 3)
    return made


def test_without_a_link_the_installation_itself_is_current(installed: Releases) -> None:
    assert installed.current == installed.base
    assert installed.previous is None


def test_one_link_leads_there_and_another_one_back(installed: Releases) -> None:
    installed.switch(installed.folder("1.0"))
    installed.switch(installed.folder("1.1"))
    assert installed.current == installed.folder("1.1")
    assert installed.previous == installed.folder("1.0")
    assert (installed.base / "current").readlink() == Path("releases/1.1")


def test_back_to_the_checkout_is_no_link(installed: Releases) -> None:
    installed.switch(installed.folder("1.0"))
    assert installed.previous == installed.base
    installed.switch(installed.base)
    assert not (installed.base / "current").is_symlink()
    assert installed.previous == installed.folder("1.0")


def test_half_made_release_is_none(installed: Releases) -> None:
    (installed.folder("1.1") / "release.json").write_text('{"version": "1.1"')
    assert installed.find("1.1") is None
    assert installed.find("1.0") is not None


def test_what_nothing_runs_goes_and_current_and_previous_stay(installed: Releases) -> None:
    installed.switch(installed.folder("1.0"))
    installed.switch(installed.folder("1.1"))
    python = installed.folder("1.2") / "bin" / "python"
    with subprocess.Popen([python, "-c", "input()"], stdin=subprocess.PIPE) as running:
        # Whoever has just become another program has no command line for a moment.
        wait_until(lambda: commands_of(installed.folder("1.2")), "seen running")
        assert installed.prune() == []
        running.communicate(b"\n")
    assert installed.prune() == ["1.2"]
    assert not installed.folder("1.2").exists()
    assert installed.find("1.0")
    assert installed.find("1.1")


def test_two_commands_do_not_make_releases_at_once(installed: Releases) -> None:
    with (
        installed.locked("upgrade 1.2"),
        pytest.raises(CellError, match=r"`zimage upgrade 1.2` .* is changing versions"),
        installed.locked("rollback"),
    ):
        pass


def test_version_that_runs_and_is_not_current_was_half_taken(installed: Releases) -> None:
    installed.switch(installed.folder("1.0"))
    assert installed.half_taken() == []
    python = installed.folder("1.1") / "bin" / "python"
    command = ["-c", "input()", "-m", "worker"]
    with subprocess.Popen([python, *command], stdin=subprocess.PIPE) as worker:
        wait_until(lambda: installed.half_taken() == ["1.1"], "seen")
        installed.switch(installed.folder("1.1"))
        assert installed.half_taken() == []
        worker.communicate(b"\n")
