"""The systemd unit: systemd itself has to like it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.cell import Cell
from deploy.config import ROOT, parse
from deploy.unit import render_unit


def unit(tmp_path: Path, user: str = "", name: str = "cluster.toml") -> str:
    return render_unit(Cell(parse({}), tmp_path / name), user)


@pytest.mark.parametrize("user", ["", "root"])
@pytest.mark.parametrize("name", ["cluster.toml", "50% of it.toml"])
def test_systemd_takes_it_without_a_complaint(tmp_path: Path, user: str, name: str) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze here (Debian: apt-get install systemd)")
    path = tmp_path / "zimage.service"
    path.write_text(unit(tmp_path, user, name))
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "zimage" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


def test_unit_runs_the_cell_in_front_of_its_own_configuration(tmp_path: Path) -> None:
    text = unit(tmp_path)
    assert f"up --foreground --no-draw --config {tmp_path}/cluster.toml" in text
    assert f"WorkingDirectory={ROOT}" in text
    assert "User=" not in text
    assert "User=draw" in unit(tmp_path, "draw")


def test_unit_outwaits_drawings_and_spares_workers_of_a_killed_supervisord(tmp_path: Path) -> None:
    text = unit(tmp_path)
    assert "TimeoutStopSec=200" in text
    assert "KillMode=process" in text
    assert "Restart=on-failure" in text
