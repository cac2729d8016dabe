"""Start real processes for a test, wait for what they promise, and leave none behind."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from deploy.config import ROOT
from deploy.layout import Layout
from deploy.supervision.rpc import UnixConnection

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")
PATIENCE_S = 60.0


def wait_until(true: Callable[[], Any], what: str) -> Any:
    """The first truthy value of ``true``; AssertionError after a generous time.

    Asked the less often the longer it takes: what is waited for needs the processor more.
    """
    began = time.monotonic()
    while (waited_s := time.monotonic() - began) < PATIENCE_S:
        if value := true():
            return value
        time.sleep(min(max(0.01, waited_s / 20), 0.1))
    raise AssertionError(f"never {what}")


def worker_environment(layout: Layout, name: str, step_s: float = 1.0) -> dict[str, str]:
    return {
        "ZIMAGE_NAME": name,
        "ZIMAGE_RUN_DIR": str(layout.run_dir),
        "FAKE_STEP_S": str(step_s),
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }


@contextlib.contextmanager
def running(
    command: list[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, which ends with the block."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=env, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        _end(process)


def fake_worker(
    layout: Layout, name: str, step_s: float = 1.0
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    environment = worker_environment(layout, name, step_s)
    return running([sys.executable, str(FAKE_WORKER)], layout.log(name), environment)


def ask(
    layout: Layout, name: str, method: str, path: str, timeout_s: float = 5.0
) -> httpx.Response:
    """One request straight to a worker's socket. ``httpx.TransportError``: it does not answer."""
    with contextlib.closing(UnixConnection(layout.socket(name), timeout_s)) as connection:
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read())
        except (OSError, http.client.HTTPException) as problem:
            raise httpx.TransportError(str(problem)) from problem


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def cell_state(layout: Layout) -> dict[str, Any]:
    try:
        return dict(json.loads(layout.cell_json.read_text()))
    except FileNotFoundError:
        return {"workers": [], "alarms": [], "events": []}


def _end(process: subprocess.Popen[bytes]) -> None:
    # A stopped process takes no SIGTERM, and supervisord ends its children on one.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGCONT)
        process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
