"""The proofs by load, short: the same scenarios, users and objectives as before a release."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.config import ROOT
from loadtest import run_file
from loadtest.auth import KEY_VARIABLE
from loadtest.faults import process_ids
from tests.cluster.conftest import RunningCell, started
from tests.cluster.test_keys import known_after_s, make

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.long]


def play(cell: RunningCell, *arguments: str, key: str = "") -> tuple[str, Path]:
    """Run a scenario; what it said, and the folder of its report."""
    reports = cell.layout.var_dir / "reports"
    before = set(reports.iterdir()) if reports.exists() else set()
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.cli", *arguments, "--config", str(cell.config_path)],
        cwd=ROOT,
        env={**os.environ, KEY_VARIABLE: key},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr + cell.story()
    (folder,) = set(reports.iterdir()) - before
    return done.stdout, folder


@pytest.mark.xdist_group("cell")
def test_failover_is_not_seen_by_twenty_users(cell: RunningCell) -> None:
    faults = ("kill", "pause", "descriptors", "malformed-bodies")
    said, folder = play(
        cell, "failover", "--duration-s", "30", "--every-s", "6", "--faults", *faults
    )
    run, records = run_file.load(folder)
    assert "✓ passed" in said
    assert len(run.faults) >= 3
    assert {r.user for r in records} == {"Designer", "Program", "Batch"}
    assert all(r.result in {"ok", "left"} for r in records)


def test_failover_on_a_cell_with_keys_and_https() -> None:
    with started(auth="keys", more="[tls]\nself_signed = true\n") as cell:
        key = make(cell, "loadtest")
        known_after_s(cell, key, 200)
        clients = ("half-closed", "slow-loris", "malformed-bodies", "giant-bodies")
        _, folder = play(
            cell,
            *("faults", "--duration-s", "90", "--max-hold-s", "3"),
            *("--faults", "kill", *clients),
            key=key,
        )
        run, records = run_file.load(folder)
        assert len(run.faults) == 5
        assert all(r.result in {"ok", "left"} for r in records)
        users = ("-f", "loadtest/arrivals.py", "--host", cell.url, "--headless", "Single")
        done = subprocess.run(
            [*(sys.executable, "-m", "locust"), *users, "--insecure", "-u", "2", "-t", "2s"],
            cwd=ROOT,
            env={**os.environ, KEY_VARIABLE: key},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.xdist_group("keyed")
def test_load_without_a_key_says_what_is_missing(keyed: RunningCell) -> None:
    command = (sys.executable, "-m", "loadtest.cli", "failover")
    done = subprocess.run(
        [*command, "--config", str(keyed.config_path)],
        cwd=ROOT,
        env={**os.environ, KEY_VARIABLE: ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "zimage keys create loadtest" in done.stderr


def test_overload_is_refused_honestly_and_passes() -> None:
    slow = "synthetic:step_ms=10,row_ms=40"
    with started(model=slow, max_queued_requests=16) as cell:
        said, folder = play(cell, "overload", "--duration-s", "12")
        run, _ = run_file.load(folder)
    assert "✓ passed" in said
    assert run.measured["refused"] > 10


def test_cell_that_does_not_run_is_started_for_the_proof_and_ended(tmp_path: Path) -> None:
    # 14 pictures a second: in a few steps there are more users than are drawn for within 10 s.
    cell = RunningCell(tmp_path, model="synthetic:step_ms=10,row_ms=25")
    _, folder = play(cell, "capacity", "--duration-s", "2", "--users", "40")
    run, _ = run_file.load(folder)
    assert "3 on CPU" in run.about["workers"]
    assert [part.name for part in run.parts][:2] == ["40 users", "80 users"]
    assert run.measured["capacity_users"] >= 40
    assert process_ids(tmp_path) == set()
