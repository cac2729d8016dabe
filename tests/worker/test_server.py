"""A worker that is told to end does, whoever still listens to it."""

import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.worker.conftest import migrated, settings_in
from tests.worker.processes import WorkerProcess, wait_until, worker

pytestmark = pytest.mark.timeout(120)
LONG_S = "600"
"""To drain: longer than a test may take."""


@pytest.fixture
def serving(home: Path) -> Iterator[WorkerProcess]:
    migrated(settings_in(home))
    with worker(home, drain_timeout_s=LONG_S) as process:
        yield process.wait_ready()


def make(process: WorkerProcess, **fields: Any) -> str:
    answer = process.client.post("/v1/jobs", json={"prompts": ["a"], "size": "64x64", **fields})
    job: dict[str, Any] = answer.json()
    return str(job["id"])


def ended(process: WorkerProcess) -> None:
    """Fails where SIGTERM does not end it soon."""
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def test_an_open_stream_of_a_job_holds_no_worker_that_ends(serving: WorkerProcess) -> None:
    job = make(serving)
    serving.client.post(f"/v1/jobs/{job}/pause")
    with serving.client.stream("GET", f"/v1/jobs/{job}/events") as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line == "event: job.updated")  # ends the first look
        next(line for line in lines if line.startswith("data: "))
        ended(serving)
        assert [line for line in lines if line] == []  # closed in order: nobody was cut


def test_an_archive_that_nobody_reads_holds_no_worker_that_ends(
    serving: WorkerProcess, home: Path
) -> None:
    job = make(serving)
    url = f"/v1/jobs/{job}"
    wait_until(lambda: serving.client.get(url).json()["state"] == "completed", serving.tell)
    [picture] = (home / "images").rglob("img_*.png")
    picture.write_bytes(bytes(32 << 20))  # more than sockets take by themselves
    with serving.client.stream("GET", f"{url}/results.zip") as stream:
        assert stream.status_code == 200
        ended(serving)


def test_a_locked_database_holds_no_worker_that_ends(serving: WorkerProcess, home: Path) -> None:
    job = make(serving, steps=50)
    wait_until(lambda: serving.has() == 1, serving.tell)
    with closing(sqlite3.connect(home / "zimage.db", isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        ended(serving)
        lock.execute("ROLLBACK")
        left = lock.execute("SELECT state FROM job_items WHERE job_id = ?", (job,)).fetchall()
    assert left == [("running",)]  # of a lease that ends with its process
