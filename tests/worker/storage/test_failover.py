"""A standby takes the primary's place while rows are written: what was acknowledged is there."""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import anyio
import psycopg
import pytest

from tests.postgres import DEADLINE_S, Server, short_folder
from tests.worker.storage.conftest import picture
from worker.errors import StoreAway
from worker.storage import gallery
from worker.storage.database import Database
from worker.storage.migrations import migrate

WRITERS = 3
BEFORE, AFTER = 40, 20  # rows of each writer, before and after the loss


class Pair:
    """A primary, and a standby that has all that was acknowledged."""

    def __init__(self, folder: Path) -> None:
        for name in ("a", "b"):
            (folder / name).mkdir()
        self.primary = Server(folder / "a").create().start()
        self.standby = Server(folder / "b", "hot_standby=on")
        self.standby.program(
            "pg_basebackup", "-R", "-c", "fast", "-h", self.primary.folder, "-U", "zimage",
            "-D", self.standby.data,
        )  # fmt: skip
        self.standby.start()
        with self.primary.connect() as admin:
            admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            admin.execute("SELECT pg_reload_conf()")
            until(lambda: _is_synchronous(admin))

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


def _is_synchronous(admin: "psycopg.Connection[tuple[object, ...]]") -> bool:
    states = admin.execute("SELECT sync_state FROM pg_stat_replication").fetchall()
    return states == [("sync",)]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with short_folder() as folder:
        folder.chmod(0o755)
        made = Pair(folder)
        yield made
        for server in (made.primary, made.standby):
            server.stop()


def write(url: str, told: Path, writer: int) -> list[str]:
    """Store pictures one by one, going on until enough came through after a loss; those that were
    acknowledged."""

    async def work() -> list[str]:
        database, acknowledged = Database(url), list[str]()
        lost = after = 0
        while after < AFTER:
            name = f"{writer}-{len(acknowledged)}-{lost}"
            try:
                with anyio.fail_after(30):
                    await database.run(lambda c, n=name: gallery.insert(c, picture(n)))  # type: ignore[misc]
            except StoreAway:
                lost += 1
                await anyio.sleep(0.02)
                continue
            acknowledged.append(f"img_{name}")
            after += lost > 0
            if len(acknowledged) == BEFORE:
                (told / str(writer)).touch()
        database.close()
        return acknowledged

    return anyio.run(work)


def test_what_was_acknowledged_survives_the_loss_of_the_primary(pair: Pair, tmp_path: Path) -> None:
    migrate(pair.url)
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(WRITERS, context) as pool:
        writing = [pool.submit(write, pair.url, tmp_path, k) for k in range(WRITERS)]
        until(lambda: len(list(tmp_path.iterdir())) == WRITERS)
        pair.lose_the_primary()
        pair.promote()
        acknowledged = {name for each in writing for name in each.result(DEADLINE_S)}
    assert len(acknowledged) >= WRITERS * (BEFORE + AFTER)
    with pair.standby.connect() as admin:
        stored = {name for (name,) in admin.execute("SELECT id FROM images").fetchall()}
    assert acknowledged - stored == set()
