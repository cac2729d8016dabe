"""The systemd unit: systemd itself has to like it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.cell import Cell
from deploy.config import ROOT, parse
from deploy.rollout.unit import render_unit


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
    assert (
        "TimeoutStopSec=340" in text
    )  # nginx, then the workers: each twenty above drain_timeout_s
    assert "KillMode=process" in text
    assert "Restart=on-failure" in text


@pytest.mark.parametrize("user", ["", "draw"])
def test_nothing_stands_between_a_worker_and_its_gpu(tmp_path: Path, user: str) -> None:
    lines = [line for line in unit(tmp_path, user).splitlines() if not line.startswith("#")]
    keys = {line.split("=")[0] for line in lines}
    # Each of these, or what it implies in some version, takes away devices or machine code.
    assert not keys & {
        *("ProtectClock", "PrivateDevices", "DevicePolicy", "DeviceAllow"),
        *("MemoryDenyWriteExecute", "PrivateTmp", "RestrictFileSystems"),
    }
    filters = [line for line in lines if line.startswith("SystemCallFilter=")]
    assert all(line.startswith("SystemCallFilter=~") for line in filters)  # never a list of allowed
    assert lines.index(next(x for x in lines if "nvidia-modprobe" in x)) < lines.index(
        next(x for x in lines if x.startswith("ExecStart="))
    )


def test_root_s_unit_makes_the_service_user_that_up_may_not_make_there(tmp_path: Path) -> None:
    [made] = [line for line in unit(tmp_path).splitlines() if "useradd" in line]
    assert made.startswith("ExecStartPre=-+/bin/sh -c ")  # with full rights: /etc is read-only else
    assert made.endswith('"$$0"\' zimage')
    assert "useradd" not in unit(tmp_path, "draw")


def test_state_under_usr_may_be_written(tmp_path: Path) -> None:
    def of(var_dir: str) -> str:
        return render_unit(Cell(parse({"cell": {"var_dir": var_dir}}), tmp_path / "c.toml"), "")

    assert "ReadWritePaths=-/usr/local/zimage/var" in of("/usr/local/zimage/var")
    assert "ReadWritePaths" not in of("/srv/zimage/var")
    assert f'RequiresMountsFor={ROOT} "/data/my cell"' in of("/data/my cell")


@pytest.mark.parametrize(("user", "limit"), [("", 5.5), ("draw", 3.5)])
def test_systemd_rates_its_exposure(tmp_path: Path, user: str, limit: float) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze here (Debian: apt-get install systemd)")
    path = tmp_path / "zimage.service"
    path.write_text(unit(tmp_path, user))
    command = [analyze, "security", "--offline=yes", f"--threshold={limit * 10:.0f}", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
