"""Jobs on a real cell: from the command line, and while everything is killed."""

import json
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loadtest import crash_jobs, faults
from tests.cluster.conftest import RunningCell, started
from worker.models.synthetic import text_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cell() -> Iterator[RunningCell]:
    with started(model="synthetic:step_ms=40", workers=2) as running:
        yield running


def jobs(cell: RunningCell, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = cell.zimage("jobs", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def created(cell: RunningCell, *arguments: str) -> str:
    made: dict[str, str] = json.loads(jobs(cell, "create", "--json", *arguments).stdout)
    return made["id"]


def test_from_a_template_to_files(cell: RunningCell, tmp_path: Path) -> None:
    template = ["--template", "a {red|blue} poster of {p}", "--var", "p=tea,coffee"]
    preview = jobs(cell, "create", *template, "--preview").stdout.splitlines()
    assert preview[:2] == ["a red poster of tea", "a red poster of coffee"]
    assert preview[-1] == "✓ 4 pictures"
    job = created(cell, *template, "--seed", "5", "--steps", "4", "--size", "256x256")
    watched = jobs(cell, "watch", job).stdout
    assert f"{job} is completed: 4 done" in watched
    jobs(cell, "download", job, "--to", str(tmp_path / "posters"))
    pictures = sorted((tmp_path / "posters").iterdir())
    assert pictures[0].name == "0001-a-red-poster-of-tea.png"
    spelled = [text_of(np.asarray(Image.open(p))) for p in pictures]
    assert spelled[3] == "a blue poster of coffee|8|4"
    jobs(cell, "download", job, "--to", str(tmp_path / "all.zip"))
    assert len(zipfile.ZipFile(tmp_path / "all.zip").namelist()) == 4


def test_steering_from_the_shell(cell: RunningCell) -> None:
    job = created(cell, "--name", "slow", "--steps", "50", "--variants", "30", "a", "b")
    assert "is paused" in jobs(cell, "pause", job).stdout
    assert "slow" in jobs(cell, "list", "--state", "paused").stdout
    assert "is running" in jobs(cell, "resume", job).stdout
    assert "is cancelled" in jobs(cell, "cancel", job).stdout
    watched = cell.zimage("jobs", "watch", job)
    assert (watched.returncode, "is cancelled" in watched.stderr) == (1, True)
    shown = json.loads(jobs(cell, "show", job, "--json").stdout)
    assert (shown["state"], shown["total"]) == ("cancelled", 60)
    assert "is running" in jobs(cell, "retry", job).stdout
    jobs(cell, "delete", job)
    missing = cell.zimage("jobs", "show", job)
    assert (missing.returncode, "There is no job" in missing.stderr) == (1, True)


def test_watching_goes_on_while_workers_die(cell: RunningCell, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"line {k}" for k in range(40)))
    job = created(cell, "--from", str(prompts), "--steps", "10")
    faults.kill(cell, "w1")
    watched = jobs(cell, "watch", job)
    assert f"{job} is completed: 40 done" in watched.stdout


def test_nothing_is_lost_or_doubled_whatever_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rounds, one of them with every process of the cell."""
    kills = iter(["a worker", "everything", "nginx", "all workers", "the guard"])
    monkeypatch.setattr(crash_jobs, "_chosen", lambda rng: next(kills))
    report = crash_jobs.run(rounds=5)
    assert report.problems == []
    assert (report.jobs, report.items) == (5, 60)
