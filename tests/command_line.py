"""``zimage`` as a process of its own, forked from one that has imported its libraries already.

The imports are most of what a command costs, and tests run hundreds of commands.
"""

import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from multiprocessing import connection
from pathlib import Path

from deploy.config import ROOT

_FORKED = multiprocessing.get_context("forkserver")
# What looks at the terminal or at the environment as it is imported is not among them.
_FORKED.set_forkserver_preload(
    [
        "deploy.rendering.render",
        "deploy.store",
        "sqlalchemy",
        "alembic.command",
        "alembic.script",
        "alembic.runtime.migration",
        "httpx",
        "rich.live",
        "typer",
        "worker.models.base",
    ]
)
_ONE_AT_A_TIME = threading.Lock()
"""multiprocessing reaps all that has ended whenever something starts, from any thread."""


def zimage(
    arguments: tuple[str, ...], environment: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """What the command said. ``subprocess.TimeoutExpired`` where it had to be killed."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "stdout"), Path(folder, "stderr")
        process = _FORKED.Process(target=_main, args=(arguments, dict(environment), *told))
        with _ONE_AT_A_TIME:
            process.start()
        in_time = bool(connection.wait([process.sentinel], timeout_s))
        if not in_time:
            process.kill()
        with _ONE_AT_A_TIME:
            process.join()
            code = process.exitcode
            process.close()
        said, complained = (
            path.read_text(encoding="utf-8") if path.exists() else "" for path in told
        )
    if code is None or not in_time:
        raise subprocess.TimeoutExpired(["zimage", *arguments], timeout_s, said, complained)
    return subprocess.CompletedProcess(["zimage", *arguments], code, said, complained)


def _main(arguments: tuple[str, ...], environment: dict[str, str], *told: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    for number, path in enumerate(told, start=1):
        with contextlib.closing(path.open("wb")) as file:
            os.dup2(file.fileno(), number)
    sys.argv = ["zimage", *arguments]
    runpy.run_module("deploy.cli.app", run_name="__main__")
