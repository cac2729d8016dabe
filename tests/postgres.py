"""The PostgreSQL server of the tests: one for a process, without a port, gone with it."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadtest.cluster import postgres as servers
from loadtest.cluster.postgres import DEADLINE_S, binaries

__all__ = ["DEADLINE_S", "Server", "binaries", "postgres", "short_folder"]


class Server(servers.Server):
    """Skips the test where no server is installed."""

    def __init__(self, folder: Path, *options: str) -> None:
        try:
            super().__init__(folder, *options)
        except LookupError as problem:
            pytest.skip(str(problem))


@contextmanager
def short_folder() -> Iterator[Path]:
    """A unix socket's path is short."""
    folder = Path(tempfile.mkdtemp(prefix="zp-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """Begun with the first test that asks for it."""
    with short_folder() as folder:
        server = Server(folder, *servers.FAST).create().start()
        yield server
        server.stop()
