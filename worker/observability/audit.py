"""Who drew what, and who changed or saw what is not theirs: one JSON line each, in files that no
other user reads and that end by age.

``<folder>/<yyyy-mm-dd>T<hhmmss>-<worker>-<pid>.jsonl``. A worker writes to files of its own, so
that lines never mix. Lines pass through an outbox: neither a full disk nor a stalled one holds up a
drawing. What could not be written is counted.

An owner's lines of a day beyond its share go to files of their own (``…-beyond.jsonl``). Where
all files are more than they may be, these end first: nobody erases what others did by doing much.
"""

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from worker import log
from worker.outbox import Outbox
from worker.storage.keys import EVERYONE

if TYPE_CHECKING:
    from worker.types import DrawSpec

MAX_QUEUED_LINES = 10_000
MAX_FILE_BYTES = 16 << 20
_FILES = 16  # at least, so that their size is kept to within a sixteenth
_MAX_OWNERS = 10_000  # whose shares are counted; clients of a cell without keys may be many
_PAUSE_S = 0.05
_COMPLAIN_EVERY_S = 60.0
_NAME = re.compile(r"\d{4}-\d\d-\d\dT\d{6}-[a-z0-9-]+\.jsonl")
_BEYOND = "-beyond"


class Entry(NamedTuple):
    """One picture: ``drew``, or ``left`` where nobody waited until it was finished, after so many
    ``previews``. ``at`` is in seconds since the epoch, ``owner`` the id of a key."""

    at: float
    image: str
    owner: str
    name: str
    client: str
    model: str
    spec: "DrawSpec"
    job: str | None = None
    event: str = "drew"
    previews: int = 0


@dataclass(frozen=True)
class Note:
    """Anything else that somebody did. ``details`` must be JSON."""

    at: float
    event: str
    owner: str
    name: str
    client: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rules:
    """``prompts`` False: all but what was asked for; else so many characters of it. ``max_bytes``
    of all files; ``owner_bytes`` of one owner's lines of a day and worker."""

    prompts: bool = True
    prompt_chars: int = 1000
    keep_s: float = 180 * 86_400.0
    max_bytes: int = 1 << 30
    owner_bytes: int = 2 << 20


class Audit:
    """``folder`` None: nothing is written. ``run`` it in a thread."""

    def __init__(self, folder: Path | None, worker: str, rules: Rules) -> None:
        self._folder = folder
        self._rules = rules
        self._queue = Outbox[Entry | Note](self._write_all, MAX_QUEUED_LINES, _PAUSE_S)
        self._outlets = [
            _Outlet(f"{worker}-{os.getpid()}{tag}", min(MAX_FILE_BYTES, rules.max_bytes // _FILES))
            for tag in ("", _BEYOND)
        ]
        self._day = ""
        self._owners: dict[str, int] = {}  # bytes of this day
        self._complained_at = -_COMPLAIN_EVERY_S
        self.bytes = 0
        """Of all workers' files when last looked at."""
        self.deleted_early = 0
        """Bytes that were deleted for lack of room before they were as old as they may become."""

    def drew(self, entry: Entry) -> None:
        """Note one picture. Never waits."""
        self._put(entry)

    def note(self, event: str, owner: str, name: str, client: str, **details: Any) -> None:
        """Note that somebody did something. Never waits."""
        self._put(Note(time.time(), event, owner, name, client, details))

    @property
    def lost(self) -> int:
        """Lines that were not written."""
        return self._queue.lost

    def _put(self, entry: Entry | Note) -> None:
        if self._folder is not None:
            self._queue.put(entry)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued, for at most ``timeout_s``."""
        if self._folder is not None and not self._queue.close(timeout_s):
            log.event("audit lines are lost", why="the worker ends")

    def run(self) -> None:
        """Write what is queued until ``close``. Blocks: a thread's work."""
        self._queue.run()
        for outlet in self._outlets:
            outlet.close()

    def _write_all(self, entries: Iterator[Entry | Note]) -> None:
        for entry in entries:
            self._write(entry)
        self._flush()

    def _write(self, entry: Entry | Note) -> None:
        written = False
        try:
            at = log.timestamp(entry.at)
            line = _line(entry, at, self._rules)
            outlet = self._outlet(entry, at[:10], len(line))
            try:
                if outlet.needs_a_file(self._day):
                    self._open(outlet)
                outlet.write(line)
                written = True
            except OSError as error:
                self._fail(outlet, error)
        finally:  # whatever went wrong
            self._queue.unwritten += not written

    def _outlet(self, entry: Entry | Note, day: str, size: int) -> "_Outlet":
        if day != self._day:
            self._day, self._owners = day, {}
        owner = entry.client if entry.owner == EVERYONE else entry.owner
        used = self._owners.get(owner, 0) + size
        if used > self._rules.owner_bytes or len(self._owners) >= _MAX_OWNERS:
            return self._outlets[1]
        self._owners[owner] = used
        return self._outlets[0]

    def _flush(self) -> None:
        for outlet in self._outlets:
            try:
                outlet.flush()
            except OSError as error:
                self._fail(outlet, error)

    def _fail(self, outlet: "_Outlet", error: OSError) -> None:
        self._queue.unwritten += outlet.unwritten
        outlet.close()
        now = time.monotonic()
        if now - self._complained_at >= _COMPLAIN_EVERY_S:
            self._complained_at = now
            log.failure("audit lines are lost", error, lines=self.lost)

    def _open(self, outlet: "_Outlet") -> None:
        assert self._folder is not None, "without a folder nothing is queued"
        outlet.flush()
        outlet.close()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._prune(self._folder)
        outlet.open(self._folder, self._day)

    def _prune(self, folder: Path) -> None:
        """Delete what is too old, then the oldest beyond the size, of lines beyond their owner's
        share first. Other workers do the same."""
        total, oldest = 0, time.time() - self._rules.keep_s
        for path in sorted(folder.iterdir(), key=_worth, reverse=True):
            if _NAME.fullmatch(path.name) is None:
                continue  # somebody's copy
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                old = status.st_mtime < oldest
                if not old and total + status.st_size <= self._rules.max_bytes:
                    total += status.st_size
                    continue
                path.unlink()
                self.deleted_early += 0 if old else status.st_size
                log.event(
                    "audit log deleted",
                    file=path.name,
                    bytes=status.st_size,
                    before_its_time=not old,
                )
        self.bytes = total


class _Outlet:
    """One file after the other: a new one each day and after ``max_bytes``."""

    def __init__(self, name: str, max_bytes: int) -> None:
        self._name = name
        self._max_bytes = max_bytes
        self._file: TextIO | None = None
        self._day = ""
        self._bytes = 0  # of the file; telling its position would write out its buffer
        self.unwritten = 0  # lines in the file's buffer

    def needs_a_file(self, day: str) -> bool:
        return self._file is None or day != self._day or self._bytes > self._max_bytes

    def open(self, folder: Path, day: str) -> None:
        opened_at = time.strftime("%Y-%m-%dT%H%M%S", time.gmtime())
        fd = _append_to(folder / f"{opened_at}-{self._name}.jsonl")
        self._file = os.fdopen(fd, "a", encoding="ascii")
        self._day, self._bytes, self.unwritten = day, os.fstat(fd).st_size, 0

    def write(self, line: str) -> None:
        assert self._file is not None, "open comes first"
        self._bytes += self._file.write(line)
        self.unwritten += 1

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()
            self.unwritten = 0

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file, self.unwritten = None, 0


def append(folder: Path, source: str, note: Note) -> None:
    """Write one line at once, to the file of this day that ``source`` has: for commands. Raises
    ``OSError``."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = _append_to(folder / f"{log.timestamp(note.at)[:10]}T000000-{source}.jsonl")
    try:
        os.write(fd, line_of(note, Rules()).encode("ascii"))
    finally:
        os.close(fd)


def line_of(entry: Entry | Note, rules: Rules) -> str:
    """``entry`` as it stands in a file."""
    return _line(entry, log.timestamp(entry.at), rules)


def _line(entry: Entry | Note, at: str, rules: Rules) -> str:
    fields: dict[str, Any] = {"at": at, "event": entry.event}
    if isinstance(entry, Entry):
        fields["image"] = entry.image
    fields |= {"owner": entry.owner, "name": entry.name, "client": entry.client}
    if isinstance(entry, Note):
        fields |= entry.details
    else:
        _put_picture(fields, entry, rules)
    return log.as_json(fields) + "\n"


def _put_picture(fields: dict[str, Any], entry: Entry, rules: Rules) -> None:
    fields["model"] = entry.model
    if entry.job:
        fields["job"] = entry.job
    if entry.event != "drew":
        fields["previews"] = entry.previews
    spec, others = entry.spec, {}
    for name, value in {"prompt": spec.prompt, **spec.parameters.normalised()}.items():
        if type(value) is not str:  # of a kind of its own, such as adapters
            others[name] = value
        elif rules.prompts:
            _put_bounded(fields, name, value, rules.prompt_chars)
    fields["seed"] = spec.seed
    if spec.source is not None:
        fields |= spec.source.digests
    fields |= others


def _put_bounded(fields: dict[str, Any], key: str, text: str, most: int) -> None:
    """``text``, or where it is longer its beginning with what tells whether another text is it."""
    fields[key] = text[:most]
    if len(text) > most:
        fields[f"{key}_chars"] = len(text)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
        fields[f"{key}_sha256"] = digest.hexdigest()


def _worth(path: Path) -> tuple[bool, str]:
    """What is worth least goes first: lines beyond their owner's share, then older ones."""
    return not path.stem.endswith(_BEYOND), path.name


def _append_to(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
