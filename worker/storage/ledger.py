"""Usage on its way to the database: a journal on disk first, the ledger a moment later.

``<var_dir>/usage/<worker>-<pid>-….journal`` holds JSON lines. A picture's entry is written before
its answer leaves the worker, so whatever was handed out is counted even when the worker is killed;
only a machine that loses power within about a second may lose it. Lines go to the database in
batches, and stay while it is away. A journal whose process is gone is taken over by any worker: its
lock is free. Entering a line twice changes nothing.
"""

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import orjson
import sqlalchemy as sa

from worker import log
from worker.errors import StoreAway
from worker.file_lock import try_lock
from worker.outbox import LoopOutbox
from worker.storage import usage
from worker.storage.database import Database, clock
from worker.storage.usage import Entry

MAX_JOURNAL_BYTES = 64 << 20
MAX_IN_MEMORY = 10_000
_BATCH_BYTES = 256 << 10
_BATCH_LINES = 1000
_FLUSH_S = 1.0
_PRUNE_EVERY_S = 3600.0
_ENTRIES_KEEP_S = 7 * 86_400.0  # replays come within minutes


class Ledger(LoopOutbox[bytes]):
    """Lines that the disk has no room for wait in memory. ``lost`` is told how many entries found
    room in neither."""

    def __init__(
        self,
        database: Database,
        folder: Path,
        worker: str,
        keep_days: float,
        lost: Callable[[int], None],
    ) -> None:
        says = "usage waits for the disk or the database", "usage is not in the ledger"
        super().__init__(lost, says)
        self._database = database
        self._folder = folder
        self._path = folder / f"{worker}-{os.getpid()}-{secrets.token_hex(4)}.journal"
        self._keep_s = keep_days * 86_400
        self._fd: int | None = None
        self._entered = 0  # bytes of the journal that are in the database
        self._size = 0

    def record(self, *entries: Entry) -> None:
        """Promise that ``entries`` will be counted. Takes microseconds; never raises."""
        lines = [orjson.dumps(e, option=orjson.OPT_APPEND_NEWLINE) for e in entries]
        if not self._append(b"".join(lines)):
            for line in lines:
                self._put(line, len(line), MAX_IN_MEMORY, MAX_JOURNAL_BYTES)

    @property
    def waiting_bytes(self) -> int:
        """Of entries that are not in the database yet."""
        return self._size - self._entered + self._waiting_bytes

    async def follow(self) -> None:
        """Bring what was recorded to the database, for ever; now and then forget what is old."""
        prune_at = 0.0
        while True:
            await self.flush()
            if time.monotonic() >= prune_at:
                prune_at = time.monotonic() + _PRUNE_EVERY_S
                await self._prune()
            await asyncio.sleep(_FLUSH_S)

    async def _write(self) -> None:
        """Enter all that waits: this worker's, then that of processes that are gone."""
        await self._flush_own()
        while lines := self._waiting[:_BATCH_LINES]:
            await self._enter(b"".join(lines))
            del self._waiting[: len(lines)]
            self._waiting_bytes -= sum(map(len, lines))
        for path in await asyncio.to_thread(lambda: list(self._folder.glob("*.journal"))):
            if path != self._path:
                await self._adopt(path)

    def close(self) -> None:
        """Leave nothing behind where all is entered; else the next worker takes it over."""
        left = [line for line in self._waiting if not self._append(line)]
        self._waiting, self._waiting_bytes = [], 0
        self._lose(len(left), "the worker ends")
        if self._fd is None:
            return
        if self._entered == self._size:
            self._path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = None

    # Writing

    def _append(self, lines: bytes) -> bool:
        if self._size + len(lines) > MAX_JOURNAL_BYTES:
            return False
        try:
            fd = self._open()
            if os.write(fd, lines) == len(lines):
                self._size += len(lines)
                return True
            os.ftruncate(fd, self._size)  # the disk is full: half a line must not stay
        except OSError as error:
            self._tell(str(error))
        return False

    def _open(self) -> int:
        if self._fd is None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Locked before it has its name: nobody may take it for a dead process's.
            fresh = self._path.with_suffix(".new")
            fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try_lock(fd)
            fresh.rename(self._path)
            self._fd = fd
        return self._fd

    # Entering

    async def _flush_own(self) -> None:
        while self._fd is not None and self._entered < self._size:
            room = min(_BATCH_BYTES, self._size - self._entered)
            whole = _whole_lines(os.pread(self._fd, room, self._entered))
            await self._enter(whole)
            self._entered += len(whole)
        if self._fd is not None and self._size:
            os.ftruncate(self._fd, 0)
            self._entered = self._size = 0

    async def _enter(self, lines: bytes) -> None:
        for line, error in await self._database.run_each(lines.splitlines(), _apply):
            log.failure("usage that cannot be stored is dropped", error, line=line.decode()[:500])
            self._lose(1, "the database refuses it")

    async def _adopt(self, path: Path) -> None:
        """Enter the journal at ``path`` and delete it, if its process is gone."""
        with suppress(FileNotFoundError), path.open("rb") as file:
            if not try_lock(file):
                return
            entered = 0
            while data := await asyncio.to_thread(os.pread, file.fileno(), _BATCH_BYTES, entered):
                # Of a line that was cut off no answer was sent: it makes no sense, and is left out.
                whole = _whole_lines(data)
                await self._enter(whole)
                entered += len(whole)
            os.unlink(path)  # noqa: PTH108 — a moment, and nobody else may adopt it meanwhile
            log.event("journal of a dead process entered", journal=path.name, bytes=entered)

    async def _prune(self) -> None:
        def work(connection: sa.Connection) -> None:
            now = clock(connection)
            usage.prune(connection, now - _ENTRIES_KEEP_S, usage.day_of(now - self._keep_s))

        with suppress(StoreAway):
            await self._database.run(work)


def _whole_lines(data: bytes) -> bytes:
    """``data`` without the line that it breaks off in; no line is as long as a batch."""
    return data[: data.rfind(b"\n") + 1] or data


def _apply(connection: sa.Connection, lines: Sequence[bytes]) -> None:
    # In the database's thread: a thousand lines would hold up the event loop.
    usage.apply(connection, _parsed(lines))


def _parsed(lines: Sequence[bytes]) -> Sequence[Entry]:
    entries = []
    for line in lines:
        try:
            entries.append(Entry(**orjson.loads(line)))
        except (ValueError, TypeError) as error:
            log.failure("a line of the journal makes no sense", error)
    return entries
