"""A standby takes the primary's place while rows are written: what was acknowledged is there."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import anyio
import pytest

from tests.postgres import DEADLINE_S, Pair, running_pair
from tests.worker.storage.conftest import picture
from worker.errors import StoreAway
from worker.storage import gallery
from worker.storage.database import Database
from worker.storage.migrations import migrate

WRITERS = 3
BEFORE, AFTER = 40, 20  # rows of each writer, before and after the loss


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with running_pair() as made:
        yield made


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
