"""What scripts/up hands on, with programs of our own in place of those that it calls, and what
scripts/env says on machines that nobody has tried."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TELL = '#!/bin/sh\necho "$0 $*" >>"{log}"\n{more}\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """One with scripts/up alone; ``log`` tells who was called how."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "up", tmp_path / "scripts" / "up")
    log = tmp_path / "log"
    programs = {"scripts/env": "cat", ".venv/bin/zimage": f'echo "read $(cat)" >>"{log}"'}
    for name, more in programs.items():
        path = tmp_path / name
        path.write_text(TELL.format(log=log, more=more), encoding="utf-8")
        path.chmod(0o755)
    return tmp_path


def told(checkout: Path, *words: str, given: str = "") -> str:
    command = [str(checkout / "scripts" / "up"), *words]
    subprocess.run(command, input=given, text=True, check=True, timeout=30, stdout=subprocess.PIPE)
    return (checkout / "log").read_text(encoding="utf-8").replace(f"{checkout}/scripts/../", "")


def test_token_on_standard_input_reaches_zimage_and_nobody_else(checkout: Path) -> None:
    assert told(checkout, "--join", "-", "--config", "c", given="token\n") == (
        f"{checkout}/scripts/env --cluster\n.venv/bin/zimage up --join - --config c\nread token\n"
    )


def test_machine_alone_installs_nothing_of_a_cluster(checkout: Path) -> None:
    assert told(checkout, "--no-draw").splitlines()[0] == f"{checkout}/scripts/env "


MANAGERS = {
    "dnf": "dnf install nginx python3.12",
    "zypper": "zypper install nginx python312",
    "pacman": "pacman -S nginx python",
    "apk": "torch has no build for Alpine's C library",
    "": "install these by hand",
}


@pytest.mark.parametrize(("manager", "words"), MANAGERS.items(), ids=lambda each: each or "none")
def test_a_system_without_apt_is_told_what_it_lacks_and_what_to_type(
    tmp_path: Path, manager: str, words: str
) -> None:
    """Nothing of this machine but what the script itself needs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "env", "dirname", "uname", "sed", "id"):
        (programs / name).symlink_to(shutil.which(name) or "")
    if manager:
        (programs / manager).symlink_to(shutil.which("true") or "")
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "env", tmp_path / "scripts" / "env")
    done = subprocess.run(
        [str(programs / "bash"), str(tmp_path / "scripts" / "env")],
        env={"PATH": str(programs), "HOME": os.environ.get("HOME", "/")},
        text=True,
        timeout=30,
        capture_output=True,
    )
    assert done.returncode == 1
    assert "no apt-get here" in done.stderr
    assert "Python 3.11 to 3.14 with venv" in done.stderr
    assert words in done.stderr
    assert "docs/install.md" in done.stderr
