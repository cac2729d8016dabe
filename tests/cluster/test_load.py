"""The proofs by load, short: the same scenarios, users and objectives as before a release."""

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.config import ROOT
from loadtest import run_file
from loadtest.faults import process_ids
from tests.cluster.conftest import RunningCell, started

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def play(cell: RunningCell, *arguments: str) -> tuple[str, Path]:
    """Run a scenario; what it said, and the folder of its report."""
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.cli", *arguments, "--config", str(cell.config_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr + cell.story()
    (folder,) = (cell.layout.var_dir / "reports").iterdir()
    return done.stdout, folder


def test_failover_is_not_seen_by_twenty_users() -> None:
    with started() as cell:
        faults = ("kill", "pause", "descriptors", "malformed-bodies")
        said, folder = play(
            cell, "failover", "--duration-s", "30", "--every-s", "6", "--faults", *faults
        )
        run, records = run_file.load(folder)
    assert "✓ passed" in said
    assert len(run.faults) >= 3
    assert {r.user for r in records} == {"Designer", "Program", "Batch"}
    assert all(r.result in {"ok", "left"} for r in records)


def test_overload_is_refused_honestly_and_passes() -> None:
    slow = "synthetic:step_ms=10,row_ms=40"
    with started(model=slow, max_queued_requests=16) as cell:
        said, folder = play(cell, "overload", "--duration-s", "12")
        run, _ = run_file.load(folder)
    assert "✓ passed" in said
    assert run.measured["refused"] > 10


def test_cell_that_does_not_run_is_started_for_the_proof_and_ended(tmp_path: Path) -> None:
    cell = RunningCell(tmp_path, model="synthetic:step_ms=10")
    _, folder = play(cell, "capacity", "--duration-s", "2", "--users", "40")
    run, _ = run_file.load(folder)
    assert "3 on CPU" in run.about["workers"]
    assert [part.name for part in run.parts][:2] == ["40 users", "80 users"]
    assert run.measured["capacity_users"] >= 40
    assert process_ids(tmp_path) == set()
