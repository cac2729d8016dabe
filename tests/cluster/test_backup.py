"""Backup of a running cell, restore into one that is down, and a cell as systemd runs it."""

import os
import re
import signal
from pathlib import Path

import httpx
import pytest

from deploy.host import processes
from deploy.rollout.picture import PROMPT
from tests import command_line
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
    with started(model="synthetic:step_ms=1", workers=1) as cell:
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


def test_cell_of_a_unit_survives_its_killed_supervisord_and_ends_in_order() -> None:
    """What systemd does: start, notice the failed end, start again, and end it; workers draw on."""
    ready = re.compile("ready:.*")
    with configured(workers=1) as cell:
        words = ("up", "--foreground", "--no-draw")
        environment = {**os.environ, "ZIMAGE_CONFIG": str(cell.config_path)}
        with command_line.started(words, environment) as first:
            assert cell.url in wait_until(lambda: ready.search(first.said()), "ready")[0]
            os.kill(int(cell.layout.supervisor_pid.read_text()), signal.SIGKILL)
            assert first.wait(60) == 1
            assert "workers go on" in first.said() + first.complained()
        draw(cell, "nobody watches")
        with command_line.started(words, environment) as second:
            wait_until(lambda: ready.search(second.said()), "ready again")
            draw(cell, "watched again")
            second.send_signal(signal.SIGTERM)
            code = second.wait(60)
            assert (code, second.said().splitlines()[-1]) == (0, "✓ the cell has ended")
        assert processes.members(cell.layout.processes) == []
