"""Start and end the Gradio process of the side-by-side scenario."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import requests

from deploy.config import ROOT, ClusterConfig
from deploy.machine import read
from deploy.plan import model_source, plan

PYTHON = ROOT / ".venv-gradio" / "bin" / "python"
_START_S = 300.0


class GradioMissing(OSError):
    """Gradio is not installed; the message says how."""


@contextlib.contextmanager
def started(config: ClusterConfig, folder: Path) -> Iterator[str]:
    """Its address, once it answers. The cell may run on: idle, it costs next to nothing."""
    require()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    device = plan(config, read()).workers[0].device
    command = [str(PYTHON), "-m", "loadtest.gradio_app", model_source(config), device]
    command += [config.model.dtype, str(port)]
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    environment.pop("OMP_NUM_THREADS", None)  # it may use every core
    with (folder / "gradio.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, process, folder)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def require() -> None:
    """``GradioMissing`` where the environment is not there."""
    if not PYTHON.exists():
        raise GradioMissing(
            "side-by-side needs Gradio in an environment of its own: loadtest/gradio-env"
        )


def _wait_for(url: str, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{url}/config", timeout=2).status_code == 200:
                return
        time.sleep(0.5)
    tail = (folder / "gradio.log").read_text(errors="replace")[-500:]
    raise GradioMissing(f"Gradio did not start: {tail}")
