"""Real worker processes for tests, on unix sockets in a short folder."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

DEADLINE_S = 30.0


class WorkerProcess:
    """``python -m worker`` (or another ``module``) with a synthetic model; ends with the test."""

    def __init__(
        self,
        home: Path,
        name: str = "w1",
        model: str = "synthetic:",
        stdout: int | None = None,
        module: str = "worker",
        **env: str,
    ) -> None:
        self.name = name
        self.socket = home / "run" / f"{name}.sock"
        self.log = home / f"{name}.log"
        variables = {
            "ZIMAGE_NAME": name,
            "ZIMAGE_RUN_DIR": str(home / "run"),
            "ZIMAGE_VAR_DIR": str(home),
            "ZIMAGE_MODEL": model,
            **{f"ZIMAGE_{key.upper()}": value for key, value in env.items()},
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module],
                env={**os.environ, **variables},
                stdout=log if stdout is None else stdout,
                stderr=subprocess.STDOUT,
            )
        self.client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.socket)),
            base_url="http://cell",
            timeout=DEADLINE_S,
        )

    def wait_ready(self, deadline_s: float = DEADLINE_S) -> "WorkerProcess":
        wait_until(lambda: self.readiness().get("ready", False), self.tell, deadline_s)
        return self

    def readiness(self) -> dict[str, Any]:
        if not listens(self.socket):
            return {}
        answer: dict[str, Any] = self.client.get("/readyz").json()
        return answer

    def has(self) -> int:
        """Requests in the engine."""
        state = self.readiness()
        return int(state["queued"] + state["running"])

    def totals(self) -> dict[str, int]:
        """What the engine has counted."""
        totals: dict[str, int] = self.client.get("/livez").json()["engine"]["totals"]
        return totals

    def draw(self, prompt: str = "a", request_id: str = "", **fields: Any) -> httpx.Response:
        headers = {"X-Request-ID": request_id} if request_id else {}
        body = {"prompt": prompt, **fields}
        return self.client.post("/v1/images/generations", json=body, headers=headers)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(DEADLINE_S)

    def tell(self) -> str:
        return self.log.read_text()[-4000:]

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(DEADLINE_S)


def listens(path: Path) -> bool:
    """Whether somebody accepts at ``path``. (httpx leaks a socket for each refusal.)"""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@contextmanager
def worker(home: Path, name: str = "w1", **options: Any) -> Iterator[WorkerProcess]:
    """A worker with ``options`` of ``WorkerProcess``, ended at the end."""
    started = WorkerProcess(home, name, **options)
    try:
        yield started
    finally:
        started.close()


def wait_until(done: Any, tell: Any = lambda: "", deadline_s: float = DEADLINE_S) -> None:
    """Poll ``done`` until a generous deadline."""
    deadline = time.monotonic() + deadline_s
    while not done():
        assert time.monotonic() < deadline, f"not within {deadline_s} s: {tell()}"
        time.sleep(0.02)
