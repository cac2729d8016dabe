"""Who drew what: one JSON line a picture, in files that no other user reads and that end by age.

``<folder>/<yyyy-mm-dd>T<hhmmss>-<worker>-<pid>.jsonl``. A worker writes to files of its own, so
that lines never mix. Lines pass through a bounded queue to one thread: neither a full disk nor a
stalled one holds up a drawing. What could not be written is counted in the log.
"""

import contextlib
import json
import os
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TextIO

from worker import log
from worker.pipelines.base import DrawSpec

MAX_QUEUED_LINES = 10_000
MAX_FILE_BYTES = 16 << 20
_COALESCE_S = 0.05
"""Lines of so long are written at once: a thread that wakes for each takes the GIL each time."""
_COMPLAIN_EVERY_S = 60.0
_NAME = re.compile(r"\d{4}-\d\d-\d\dT\d{6}-[a-z0-9-]+\.jsonl")

# ASCII: every control character, line separator and change of direction is escaped, so that no
# prompt can begin a line of its own or steer the terminal that shows it.
_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


@dataclass(frozen=True)
class Entry:
    """One picture. ``at`` is in seconds since the epoch, ``owner`` the id of a key."""

    at: float
    image: str
    owner: str
    name: str
    client: str
    model: str
    spec: DrawSpec
    job: str | None = None


class Audit:
    """``folder`` None: nothing is written. ``prompts`` False: all but what was asked for."""

    def __init__(
        self, folder: Path | None, worker: str, prompts: bool, keep_days: int, max_bytes: int
    ) -> None:
        self._folder = folder
        self._worker = worker
        self._prompts = prompts
        self._keep_s = keep_days * 86_400.0
        self._max_bytes = max_bytes
        self._queue: SimpleQueue[Entry | None] = SimpleQueue()
        self._file: TextIO | None = None
        self._day = ""
        self._bytes = 0  # of the file; telling its position would write out its buffer
        self._unwritten = 0  # lines in the file's buffer
        self._lost, self._complained_at = 0, -_COMPLAIN_EVERY_S
        self._ended = threading.Event()

    def drew(self, entry: Entry) -> None:
        """Note one picture. Never waits."""
        if self._folder is None:
            return
        if self._queue.qsize() < MAX_QUEUED_LINES:
            self._queue.put(entry)
        else:
            self._lost += 1

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued, for at most ``timeout_s``."""
        if self._folder is None:
            return
        self._queue.put(None)
        self._ended.wait(timeout_s)

    def run(self) -> None:
        """Write what is queued until ``close``. Blocks: a thread's work."""
        while (entry := self._queue.get()) is not None:
            self._write(entry)
            if self._queue.empty():
                self._flush()
                time.sleep(_COALESCE_S)
        self._flush()
        self._let_go()
        self._ended.set()

    def _write(self, entry: Entry) -> None:
        self._unwritten += 1
        try:
            self._bytes += self._current(entry.at).write(self._line(entry))
        except OSError as error:
            self._fail(error)

    def _flush(self) -> None:
        try:
            if self._file is not None:
                self._file.flush()
                self._unwritten = 0
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._lost += self._unwritten
        self._unwritten = 0
        self._let_go()
        self._complain(error)

    def _line(self, entry: Entry) -> str:
        spec = dict(vars(entry.spec))
        asked = {key: spec.pop(key) for key in ("prompt", "negative_prompt")}
        fields = {
            "at": log.timestamp(entry.at),
            **{key: getattr(entry, key) for key in ("image", "owner", "name", "client", "model")},
            **({"job": entry.job} if entry.job else {}),
            **(asked if self._prompts else {}),
            **spec,
        }
        return _encode(fields) + "\n"

    def _current(self, at: float) -> TextIO:
        """The open file; a new one each day and after ``MAX_FILE_BYTES``."""
        day = log.timestamp(at)[:10]
        if self._file is not None and (day != self._day or self._bytes > MAX_FILE_BYTES):
            self._let_go()
        if self._file is None:
            self._day, self._file, self._bytes = day, self._open(), 0
        return self._file

    def _open(self) -> TextIO:
        assert self._folder is not None, "without a folder nothing is queued"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._prune(self._folder)
        opened_at = time.strftime("%Y-%m-%dT%H%M%S", time.gmtime())
        path = self._folder / f"{opened_at}-{self._worker}-{os.getpid()}.jsonl"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return os.fdopen(fd, "a", encoding="ascii")

    def _prune(self, folder: Path) -> None:
        """Delete what is too old, then the oldest beyond the size. Other workers do the same."""
        total, oldest = 0, time.time() - self._keep_s
        for path in sorted(folder.iterdir(), reverse=True):
            if _NAME.fullmatch(path.name) is None:
                continue  # somebody's copy
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                total += status.st_size
                if status.st_mtime < oldest or total > self._max_bytes:
                    path.unlink()
                    log.event("audit log deleted", file=path.name, bytes=status.st_size)

    def _let_go(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None

    def _complain(self, error: OSError) -> None:
        now = time.monotonic()
        if now - self._complained_at >= _COMPLAIN_EVERY_S:
            self._complained_at = now
            log.failure("audit lines are lost", error, lines=self._lost)
