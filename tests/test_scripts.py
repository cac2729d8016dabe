"""What scripts/up hands on, with programs of our own in place of those that it calls."""

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
