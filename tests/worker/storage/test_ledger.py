import errno
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.worker.databases import away
from worker.storage import ledger as module
from worker.storage import usage
from worker.storage.database import Database, is_sqlite
from worker.storage.ledger import Ledger
from worker.storage.usage import Entry

pytestmark = pytest.mark.anyio


def picture(request: str = "r1", index: int = 0) -> Entry:
    return Entry(request, index, "image", 1_800_000_000.0, "key_a", "tiny", 64, 64, 1.0, 0.5)


class Books:
    """A database, and ledgers of workers that write to it."""

    def __init__(self, home: Path, url: str) -> None:
        self.home = home
        self.url = url
        self.database = Database(url, timeout_s=0.3)
        self.lost = 0

    def ledger(self, worker: str = "w1") -> Ledger:
        return Ledger(self.database, self.home / "usage", worker, 800.0, self._lose)

    def _lose(self, count: int) -> None:
        self.lost += count

    async def images(self) -> int:
        rows = await self.database.read(lambda c: usage.report(c, "day"))
        return sum(row["images"] for row in rows)

    def journals(self) -> list[Path]:
        return sorted((self.home / "usage").glob("*"))


@pytest.fixture
async def books(home: Path, url: str) -> AsyncIterator[Books]:
    made = Books(home, url)
    yield made
    made.database.close()


async def test_what_is_recorded_is_on_disk_at_once_and_in_the_database_soon(books: Books) -> None:
    one = books.ledger()
    one.record(picture(), picture(index=1))
    assert books.journals()[0].read_text().count("\n") == 2
    assert one.waiting_bytes > 0
    await one.flush()
    assert (await books.images(), one.waiting_bytes) == (2, 0)
    one.record(picture("r2"))
    await one.flush()
    assert await books.images() == 3
    one.close()
    assert books.journals() == []


async def test_entries_wait_while_the_database_is_away(books: Books) -> None:
    one = books.ledger()
    with away(books.url):
        one.record(picture())
        await one.flush()
        one.record(picture("r2"))
        await one.flush()
        assert one.waiting_bytes > 0
    await one.flush()
    assert (await books.images(), one.waiting_bytes) == (2, 0)


RECORDER = """
import os, sys
from pathlib import Path
from tests.worker.storage.test_ledger import Books, picture
books = Books(Path(sys.argv[1]), sys.argv[2])
ledger = books.ledger("w2")
ledger.record(picture("dead"), picture("dead", 1))
os.write(ledger._fd, b'{"request_id": "half')  # killed in the middle of a line
print("recorded", flush=True)
sys.stdin.read()
"""


async def test_the_journal_of_a_killed_worker_is_taken_over_once(books: Books) -> None:
    mine = books.ledger()
    with subprocess.Popen(  # noqa: ASYNC220 — a moment, in a test
        [sys.executable, "-c", RECORDER, str(books.home), books.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "recorded\n"
        await mine.flush()
        assert await books.images() == 0  # it lives: its journal is its own
        os.kill(other.pid, signal.SIGKILL)
    mine.record(picture("dead"))  # the replay, drawn here
    await mine.flush()
    await books.ledger("w3").flush()
    assert await books.images() == 2
    assert len(books.journals()) == 1


async def test_a_crash_between_database_and_journal_counts_nothing_twice(books: Books) -> None:
    one = books.ledger()
    one.record(picture())
    lines = books.journals()[0].read_bytes()
    await one.flush()
    (books.home / "usage" / "w9-1-ab.journal").write_bytes(lines)  # not yet emptied when it died
    await one.flush()
    assert await books.images() == 1


async def test_a_full_disk_keeps_entries_in_memory_and_counts_what_is_lost(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = books.ledger()
    one.record(picture())

    def full(fd: int, data: bytes) -> int:
        return REAL_WRITE(fd, data[:10])

    monkeypatch.setattr(module, "MAX_IN_MEMORY", 2)
    with monkeypatch.context() as patch:
        patch.setattr("worker.storage.ledger.os.write", full)
        for i in range(4):
            one.record(picture(f"full{i}"))
    assert books.lost == 2
    one.record(picture("after"))
    await one.flush()
    assert await books.images() == 4


REAL_WRITE = os.write


async def test_what_is_in_memory_at_the_end_goes_to_the_disk_or_is_counted(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    for room in (True, False):
        one = books.ledger()
        with monkeypatch.context() as patch:
            patch.setattr("worker.storage.ledger.os.write", full)
            one.record(picture(f"{room}"), picture(f"{room}", 1))
            if not room:
                one.close()
        one.close()
    assert books.lost == 2
    await books.ledger("w2").flush()
    assert await books.images() == 2


async def test_a_long_absence_is_bounded(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_JOURNAL_BYTES", 600)
    monkeypatch.setattr(module, "MAX_IN_MEMORY", 1)
    one = books.ledger()
    for i in range(10):
        one.record(picture(f"r{i}"))
    assert books.journals()[0].stat().st_size <= 600
    assert books.lost > 0
    await one.flush()
    assert await books.images() == 10 - books.lost


async def test_a_line_that_makes_no_sense_stops_no_other(books: Books) -> None:
    (books.home / "usage").mkdir()
    (books.home / "usage" / "w9-1-ab.journal").write_bytes(b"nonsense\n[]\n{}\n")
    one = books.ledger()
    one.record(picture())
    await one.flush()
    assert await books.images() == 1
    assert len(books.journals()) == 1


async def test_a_journal_of_any_length_is_entered(books: Books) -> None:
    """All at once, SQLite refused more than 32,766 values in a query, for ever."""
    dead = books.ledger("w2")
    for i in range(40_000):
        dead.record(picture(f"r{i}"))
    assert dead._fd is not None
    os.close(dead._fd)  # as its process dies
    books.database.close()
    books.database = Database(books.url, timeout_s=30)
    most = sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 32_766  # SQLite's own; some builds allow more
    if is_sqlite(books.url):
        sa.event.listen(books.database._engine, "connect", lambda c, _: c.setlimit(*most))
    await books.ledger().flush()
    assert (await books.images(), books.journals()) == (40_000, [])


async def test_an_entry_that_cannot_be_stored_holds_up_no_other(books: Books) -> None:
    one = books.ledger()
    one.record(*(picture(f"r{i}") for i in range(5)))
    one.record(replace(picture("bad"), width=1 << 63))
    one.record(*(picture(f"s{i}") for i in range(5)))
    await one.flush()
    assert (await books.images(), books.lost, one.waiting_bytes) == (10, 1, 0)
