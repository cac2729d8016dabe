"""Start and end the Gradio process of the side-by-side scenario."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from deploy.config import ROOT, ClusterConfig
from deploy.host.machine import read
from deploy.rendering.placement import model_source
from deploy.rendering.plan import plan
from loadtest import gradio_process

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
    command = [str(PYTHON), "-m", "loadtest.gradio_app", model_source(config.served[0]), device]
    command += [config.served[0].dtype, str(port)]
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    environment.pop("OMP_NUM_THREADS", None)  # it may use every core
    log = folder / "gradio.log"
    try:
        with gradio_process.running(command, environment, port, log, _START_S) as url:
            yield url
    except gradio_process.NotStarted as error:
        raise GradioMissing(str(error)) from error


def require() -> None:
    """``GradioMissing`` where the environment is not there."""
    if not PYTHON.exists():
        raise GradioMissing(
            "side-by-side needs Gradio in an environment of its own: loadtest/gradio-env"
        )
