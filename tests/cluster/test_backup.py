"""Backup of a running cell, restore into one that is down, and a cell as systemd runs it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from deploy.config import ROOT
from deploy.rollout.picture import PROMPT
from tests.cluster.conftest import RunningCell, configured, started
from tests.deploy.processes import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def draw(cell: RunningCell, prompt: str) -> None:
    body = {"prompt": prompt, "size": "64x64"}
    answer = httpx.post(f"{cell.url}/v1/images/generations", json=body, timeout=60)
    assert answer.status_code == 200, answer.text


def kept(cell: RunningCell) -> list[str]:
    """Our prompts in the gallery, newest first; each picture is there to be looked at."""
    pictures = httpx.get(f"{cell.url}/v1/images").json()["data"]
    for picture in pictures:
        assert httpx.get(cell.url + picture["url"]).content.startswith(b"\x89PNG")
    return [p["prompt"] for p in pictures if p["prompt"] != PROMPT]  # `up` draws one itself


def test_running_cell_is_backed_up_and_comes_back_as_it_was(tmp_path: Path) -> None:
    file = str(tmp_path / "cell.tar.gz")
    with started(model="synthetic:step_ms=1", workers=2) as cell:
        draw(cell, "before")
        wait_until(lambda: kept(cell) == ["before"], "kept")
        done = cell.zimage("backup", "--images", file)
        stored = len(list(cell.layout.images_dir.rglob("*.png")))
        assert (done.returncode, f"pictures: {stored}\n" in done.stdout) == (0, True), done.stdout
        refused = cell.zimage("restore", file)
        assert refused.returncode == 1
        assert "end it first with zimage down" in refused.stderr
        draw(cell, "after")
        wait_until(lambda: kept(cell) == ["after", "before"], "kept")
        cell.down()
        for picture in cell.layout.images_dir.rglob("*.png"):
            picture.unlink()
        back = cell.zimage("restore", file)
        assert back.returncode == 0, back.stderr
        cell.up()
        assert kept(cell) == ["before"]


def test_cell_of_a_unit_survives_its_killed_supervisord() -> None:
    """What systemd does: start, notice the failed end, start again; workers draw on."""
    with configured(workers=2) as cell:
        command = [sys.executable, "-m", "deploy.cli.app", "up", "--foreground", "--no-draw"]
        environment = {**os.environ, "ZIMAGE_CONFIG": str(cell.config_path)}

        def start() -> "subprocess.Popen[str]":
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )

        with start() as first:
            assert first.stdout is not None
            assert any("ready:" in line for line in first.stdout)
            os.kill(int(cell.layout.supervisor_pid.read_text()), signal.SIGKILL)
            assert "workers go on" in first.stdout.read()
        assert first.returncode == 1
        draw(cell, "nobody watches")
        with start() as second:
            assert second.stdout is not None
            assert any("ready:" in line for line in second.stdout)
            draw(cell, "watched again")
            second.send_signal(signal.SIGTERM)
            rest = second.stdout.read()
        assert (second.returncode, rest.splitlines()[-1]) == (0, "✓ the cell has ended")
