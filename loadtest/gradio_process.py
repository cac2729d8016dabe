"""A Gradio server as a process: there while it is needed, ended whatever happens."""

import contextlib
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import requests

from deploy.config import ROOT


class NotStarted(OSError):
    """It ended or did not answer in time; the message has the end of its log."""


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], port: int, log: Path, start_s: float
) -> Iterator[str]:
    """Its address, once it answers; ``NotStarted`` after ``start_s``."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, process, log, start_s)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path, start_s: float) -> None:
    deadline = time.monotonic() + start_s
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{url}/config", timeout=2).status_code == 200:
                return
        time.sleep(0.5)
    tail = log.read_text(encoding="utf-8", errors="replace")[-1500:]
    raise NotStarted(f"Gradio did not start: {tail}")
