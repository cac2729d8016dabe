"""The PostgreSQL server of the tests: one for a process, without a port, gone with it."""

import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from loadtest.cluster import postgres as servers
from loadtest.cluster.postgres import DEADLINE_S, binaries

__all__ = ["DEADLINE_S", "Pair", "Server", "binaries", "postgres", "running_pair", "short_folder"]


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


class Pair:
    """A primary, and a standby that has all that was acknowledged."""

    def __init__(self, folder: Path, *options: str) -> None:
        for name in ("a", "b"):
            (folder / name).mkdir()
        self.primary = Server(folder / "a", *options).create().start()
        self.standby = Server(folder / "b", "hot_standby=on", *options)
        self.standby.program(
            "pg_basebackup", "-R", "-c", "fast", "-h", self.primary.folder, "-U", "zimage",
            "-D", self.standby.data,
        )  # fmt: skip
        self.standby.start()
        with self.primary.connect() as admin:
            admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            admin.execute("SELECT pg_reload_conf()")
            _wait_until_synchronous(admin)
        self.writable = self.primary

    @property
    def url(self) -> str:
        hosts = f"host={self.primary.folder}&host={self.standby.folder}"
        return f"postgresql://zimage@/postgres?{hosts}&target_session_attrs=read-write"

    def lose_the_primary(self) -> None:
        self.primary.stop(signal.SIGQUIT)

    def promote(self) -> None:
        with self.standby.connect() as admin:
            admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
            admin.execute("SELECT pg_reload_conf()")
            assert admin.execute("SELECT pg_promote()").fetchone() == (True,)
        self.writable = self.standby


def _wait_until_synchronous(admin: "psycopg.Connection[tuple[object, ...]]") -> None:
    end = time.monotonic() + DEADLINE_S
    asked = "SELECT sync_state FROM pg_stat_replication"
    while admin.execute(asked).fetchall() != [("sync",)]:
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def running_pair(*options: str) -> Iterator[Pair]:
    """``options``: of both servers."""
    with short_folder() as folder:
        folder.chmod(0o755)
        made = Pair(folder, *options)
        yield made
        for server in (made.primary, made.standby):
            server.stop()
