"""``zimage`` as a process of its own, forked from one that has imported its libraries already.

The imports are most of what a command costs, and tests run hundreds of commands. Other programs of
the kit can be started so, too.
"""

import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from deploy.config import ROOT

ZIMAGE = "deploy.cli.app"
DEADLINE_S = 240.0
"""Of a command on a machine that has much else to do; a test has five minutes."""
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
        "packaging.utils",
        "prometheus_client",
        "rich.live",
        "typer",
        "worker.models.loading.hub",
        "worker.models.loading.sources",
        "worker.storage.bucket_images",
        "worker.storage.hosts",
    ]
)
_ONE_AT_A_TIME = threading.Lock()
"""multiprocessing reaps all that has ended whenever something starts, from any thread."""


def zimage(
    arguments: tuple[str, ...],
    environment: Mapping[str, str],
    timeout_s: float = DEADLINE_S,
    typed: str = "",
) -> subprocess.CompletedProcess[str]:
    """What the command said. ``subprocess.TimeoutExpired`` where it had to be killed.

    ``typed``: its standard input.
    """
    with started(arguments, environment, typed) as command:
        code = command.wait(timeout_s)
        return subprocess.CompletedProcess(
            command.words, code, command.said(), command.complained()
        )


class Command:
    """One that runs. It ends by itself or by a signal, and with the block of ``started``."""

    def __init__(
        self,
        folder: Path,
        arguments: tuple[str, ...],
        environment: Mapping[str, str],
        terminal: Path | None,
        module: str,
    ) -> None:
        self.words = [module, *arguments]
        self._told = folder / "stdout", folder / "stderr"
        files = folder / "stdin", *([terminal] * 2 if terminal else self._told)
        self._process: BaseProcess = _FORKED.Process(
            target=_main, args=(module, arguments, dict(environment), *files)
        )
        with _ONE_AT_A_TIME:
            self._process.start()
        self.pid = self._process.pid or 0

    @property
    def runs(self) -> bool:
        return not connection.wait([self._process.sentinel], 0)

    def wait(self, timeout_s: float) -> int:
        """Its exit code. ``subprocess.TimeoutExpired`` where it has not ended by then."""
        if not connection.wait([self._process.sentinel], timeout_s):
            said, complained = self.said(), self.complained()
            raise subprocess.TimeoutExpired(self.words, timeout_s, said, complained)
        with _ONE_AT_A_TIME:
            self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def said(self) -> str:
        """What it has printed until now."""
        return _read(self._told[0])

    def complained(self) -> str:
        """What it has said on standard error until now."""
        return _read(self._told[1])

    def end(self) -> None:
        if self.runs:
            self._process.kill()
        with _ONE_AT_A_TIME:
            self._process.join()
            self._process.close()


@contextlib.contextmanager
def started(
    arguments: tuple[str, ...],
    environment: Mapping[str, str],
    typed: str = "",
    terminal: Path | None = None,
    module: str = ZIMAGE,
) -> Iterator[Command]:
    """``zimage`` from its start on, with ``typed`` as its standard input; killed with the block.

    ``terminal``: gets what it says, which is then nowhere else. ``module``: another program.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "stdin").write_text(typed, encoding="utf-8")
        command = Command(Path(folder), arguments, environment, terminal, module)
        try:
            yield command
        finally:
            command.end()


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _main(
    module: str, arguments: tuple[str, ...], environment: dict[str, str], *files: Path
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    for number, path in enumerate(files):
        with contextlib.closing(path.open("wb" if number else "rb")) as file:
            os.dup2(file.fileno(), number)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)  # multiprocessing left none
    sys.argv = ["zimage", *arguments]
    runpy.run_module(module, run_name="__main__")
