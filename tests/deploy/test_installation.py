import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from deploy import installation
from deploy.config import ROOT


def hand_over(base: Path, *, as_it_is: bool = False) -> str:
    """What becomes of `zimage status` in the installation ``base``."""
    code = (
        "from pathlib import Path; from deploy import installation; "
        f"installation.CURRENT = Path({str(base)!r}) / 'current'; "
        "installation.hand_over(['status', '--json']); print('goes on itself')"
    )
    environment = installation.as_it_is("upgrade 1.0") if as_it_is else dict(os.environ)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An installation whose current version tells how it was called."""
    python = tmp_path / "releases" / "1.0" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    return tmp_path


def test_every_command_is_one_of_the_current_version(base: Path) -> None:
    (base / "current").symlink_to("releases/1.0")
    assert hand_over(base) == "-P -m deploy.cli.app status --json"


def test_command_of_a_certain_version_stays_one(base: Path) -> None:
    (base / "current").symlink_to("releases/1.0")
    assert hand_over(base, as_it_is=True) == "goes on itself"


def test_without_a_link_or_where_it_leads_nowhere_whoever_was_called_goes_on(base: Path) -> None:
    assert hand_over(base) == "goes on itself"
    (base / "current").symlink_to("releases/2.0")
    assert hand_over(base) == "goes on itself"


def test_checkout_says_its_own_version_and_where_it_lies() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    command = [sys.executable, "-m", "deploy.cli.app", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"zimage {wanted} (code in {ROOT})\n"


def test_checkout_is_its_own_base() -> None:
    assert (installation.BASE, installation.IS_RELEASE) == (ROOT, False)
    assert sys.executable == installation.PYTHON == installation.lasting_python()


def test_packages_that_a_cell_needs_count_and_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))

    def install(name: str, record: str) -> str:
        (tmp_path / f"{name}.dist-info").mkdir(exist_ok=True)
        (tmp_path / f"{name}.dist-info" / "RECORD").write_text(record)
        return installation.packages_digest()

    before = install("pydantic_core-2.50.4", "a build")
    assert install("pytest-9.2.0", "a test's") == before
    assert install("pydantic_core-2.50.4", "another build") != before
