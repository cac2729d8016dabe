import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.guard.process import Process, find_worker
from tests.deploy.processes import wait_until

# Says its child's pid, so that the test can watch both.
PARENT = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    env = {**os.environ, "ZIMAGE_NAME": "w1", "ZIMAGE_RUN_DIR": str(tmp_path)}
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        yield process
        process.kill()


def test_worker_is_known_by_its_environment(
    worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    found = wait_until(lambda: find_worker(worker.pid, "w1", tmp_path), "known")
    assert found.alive


def test_other_processes_are_not_taken_for_it(
    worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    assert find_worker(worker.pid, "w2", tmp_path) is None
    assert find_worker(worker.pid, "w1", tmp_path / "other") is None
    assert find_worker(os.getpid(), "w1", tmp_path) is None


def test_kill_takes_the_children_along(worker: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert worker.stdout is not None
    child = int(worker.stdout.readline())
    found = wait_until(lambda: find_worker(worker.pid, "w1", tmp_path), "known")
    assert found.kill()
    wait_until(lambda: not _runs(child), "ended")
    assert worker.wait(10) == -9


def test_ended_process_is_not_alive_even_before_it_is_reaped(
    worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    found = wait_until(lambda: find_worker(worker.pid, "w1", tmp_path), "known")
    found.kill()
    wait_until(lambda: not found.alive, "ended")
    assert worker.returncode is None


def test_pid_used_again_is_another_process(worker: subprocess.Popen[bytes]) -> None:
    assert not Process(worker.pid, started=1).alive
    assert not Process(worker.pid, started=1).kill()
    assert worker.poll() is None


def _runs(pid: int) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
            != "Z"
        )
    except FileNotFoundError:
        return False
