"""The lines of all programs' logs as one stream: read, merged by time, and shown to people.

Workers, guard and nginx's access log write JSON, supervisord and nginx's errors lines of their own,
and libraries whatever they like. A line without a time belongs to the one before it.
"""

import heapq
import itertools
import json
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK_BYTES = 64 * 1024
_PLAIN = (
    # supervisord, in local time
    re.compile(r"(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d{3} (?P<level>[A-Z]+) (?P<text>.*)"),
    # nginx's errors, in local time
    re.compile(r"(?P<at>\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) \[(?P<level>[a-z]+)\] (?P<text>.*)"),
)
_SAID_ELSEWHERE = {"at", "end", "level", "worker", "event", "what", "traceback"}
_OF_A_REQUEST = {"method", "path", "status", "ms", "seconds"}


class Level(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        return list(Level).index(self)


_LEVELS = {
    "debug": Level.DEBUG, "trac": Level.DEBUG, "blat": Level.DEBUG, "debg": Level.DEBUG,
    "warn": Level.WARNING, "warning": Level.WARNING,
    "error": Level.ERROR, "erro": Level.ERROR, "critical": Level.ERROR, "crit": Level.ERROR,
    "alert": Level.ERROR, "emerg": Level.ERROR,
}  # fmt: skip
"""Words of Python, supervisord and nginx; all others are ``info``."""


@dataclass(frozen=True)
class Line:
    """``at``: seconds since the epoch. ``raw``: as it stands in the file. ``fields``: where it is
    JSON."""

    at: float
    program: str
    level: Level
    raw: str
    text: str
    fields: dict[str, Any] | None = None

    def as_json(self) -> str:
        """Itself where it is JSON already."""
        if self.fields is not None:
            return self.raw
        moment = datetime.fromtimestamp(self.at).astimezone().isoformat(timespec="milliseconds")
        line = {"at": moment, "level": self.level, "program": self.program, "text": self.raw}
        return json.dumps(line, ensure_ascii=False)

    def more(self) -> list[str]:
        """What stands below it: a traceback."""
        return str((self.fields or {}).get("traceback", "")).splitlines()


@dataclass(frozen=True)
class Log:
    """One program's log, with the older files that it was rotated into."""

    program: str
    path: Path

    def files(self) -> list[Path]:
        """Those that are there, newest first."""
        older = [(int(p.suffix[1:]), p) for p in self.path.parent.glob(f"{self.path.name}.*")
                 if p.suffix[1:].isdigit()]  # fmt: skip
        return [p for p in (self.path, *(p for _, p in sorted(older))) if p.is_file()]

    def all(self, since: float, end: int) -> Iterator[Line]:
        """Every line from ``since`` on; of the newest file, what stands before byte ``end``."""
        for file in reversed(self.files()):
            if file.stat().st_mtime >= since:
                lines = _lines(file, end if file == self.path else None)
                yield from (line for line in self.parsed(lines) if line.at >= since)

    def last(self, count: int, end: int) -> list[Line]:
        """The last ``count`` lines of all files."""
        found: list[bytes] = []
        for file in self.files():
            found = _last(file, count - len(found), end if file == self.path else None) + found
            if len(found) >= count:
                break
        return list(self.parsed(found))

    def parsed(self, lines: Iterable[bytes], at: float | None = None) -> Iterator[Line]:
        """``at``: the time of those that stand before the first with a time of its own."""
        level, early = Level.INFO, list[str]()
        for text in itertools.chain.from_iterable(map(_apart, lines)):
            line = _parse(self.program, text)
            if line is None and at is None:
                early.append(text)
            elif line is None:
                yield Line(at or 0.0, self.program, level, text, text)
            else:
                at, level = line.at, line.level
                yield from [Line(at, self.program, Level.INFO, old, old) for old in early]
                early.clear()
                yield line
        at = self.path.stat().st_mtime if early else 0.0  # nothing of it has a time
        yield from (Line(at, self.program, level, old, old) for old in early)


def merged(
    logs: Mapping[Log, int], count: int | None, since: float | None, level: Level
) -> Iterable[Line]:
    """Lines of all ``logs`` by time: the last ``count``, from ``since`` on, of ``level`` or above.
    Each log is read as far as the byte that belongs to it."""
    if since is None and level is Level.DEBUG and count is not None:
        parts: list[Iterable[Line]] = [log.last(count, end) for log, end in logs.items()]
    else:
        parts = [log.all(since or 0.0, end) for log, end in logs.items()]
    lines = heapq.merge(*parts, key=lambda line: line.at)
    wanted = (line for line in lines if line.level.rank >= level.rank)
    return wanted if count is None else deque(wanted, maxlen=count)


class Follower:
    """What is added to a log from byte ``position`` on, through its rotations."""

    def __init__(self, log: Log, *, whole: bool = False) -> None:
        self.log, self.position = log, 0
        self._file: BinaryIO | None = None
        self._last_at: float | None = None
        self._open()
        if self._file is not None and not whole:
            self.position = _end_of_lines(self._file)
            self._file.seek(self.position)

    def news(self) -> Iterator[Line]:
        """The whole lines that came since the last call."""
        yield from self._read()
        if self._was_replaced():
            yield from self._read()  # what was written before it was moved away
            self._open()
            yield from self._read()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> None:
        self.close()
        with suppress(FileNotFoundError):
            self._file = self.log.path.open("rb")

    def _was_replaced(self) -> bool:
        try:
            now = self.log.path.stat()
        except FileNotFoundError:
            return False
        if self._file is None:
            return True
        return not os.path.samestat(now, os.fstat(self._file.fileno()))

    def _read(self) -> Iterator[Line]:
        if self._file is None:
            return
        start = self._file.tell()
        lines = self._file.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            self._file.seek(start + sum(map(len, lines[:-1])))
            lines.pop()
        for line in self.log.parsed(lines, self._last_at):
            self._last_at = line.at
            yield line


def shown(line: Line, width: int) -> tuple[str, str, str]:
    """For people: when and by whom (padded to ``width``), its level, and what it says."""
    moment = datetime.fromtimestamp(line.at)
    when = f"{moment:%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}"
    return f"{when} {line.program:<{width}} ", f"{line.level.upper():<8}", line.text


def _apart(raw: bytes) -> list[str]:
    """A bar of progress begins anew with \\r, and has no end: what follows is a line of its own."""
    lines = re.split(r'[\r\n]+|(?<=.)(?=\{"at": ?)', raw.decode(errors="replace"))
    return [line for line in lines if line.strip()]


def _parse(program: str, text: str) -> Line | None:
    if text.startswith("{"):
        try:
            return _of_fields(program, text, json.loads(text))
        except (ValueError, TypeError, AttributeError, KeyError):
            return None
    for pattern in _PLAIN:
        if found := pattern.match(text):
            at = datetime.fromisoformat(found["at"].replace("/", "-")).timestamp()
            if found.re is _PLAIN[0]:
                at += int(text[20:23]) / 1000
            level = _LEVELS.get(found["level"].lower(), Level.INFO)
            return Line(at, program, level, text, found["text"])
    return None


def _of_fields(program: str, raw: str, fields: dict[str, Any]) -> Line:
    at = fields.get("end", fields["at"])
    if isinstance(at, str):
        at = datetime.fromisoformat(at).timestamp()
    status = int(fields.get("status", 0))
    level = _LEVELS.get(str(fields.get("level")), Level.INFO)
    if "level" not in fields and status >= 400:  # nginx's access log
        level = Level.ERROR if status >= 500 else Level.WARNING
    return Line(float(at), program, level, raw, _in_words(program, fields), fields)


def _in_words(program: str, fields: dict[str, Any]) -> str:
    """``GET /v1/models 200 3.5 ms``, or what happened; then all other fields as ``name=value``,
    with the long id at the end."""
    words = []
    told = set(_SAID_ELSEWHERE)
    if "method" in fields and "path" in fields:
        took_ms = fields["ms"] if "ms" in fields else float(fields.get("seconds", 0)) * 1000
        status = fields.get("status", "–")
        words.append(f"{fields['method']} {fields['path']} {status} {took_ms:g} ms")
        told |= _OF_A_REQUEST
    else:
        words.append(str(fields.get("event", fields.get("what", ""))))
    if fields.get("worker") not in (None, "", program):
        words.append(f"worker={fields['worker']}")
    for name, value in sorted(fields.items(), key=lambda field: field[0] == "request_id"):
        if name not in told and value not in (None, ""):
            words.append(f"{name}={_value(value)}")
    return " ".join(words)


def _value(value: object) -> str:
    if isinstance(value, str) and value and not re.search(r'[\s"=]', value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _lines(path: Path, end: int | None) -> Iterator[bytes]:
    with path.open("rb") as file:
        at = 0
        for line in file:
            at += len(line)
            if end is not None and at > end:
                return
            yield line


def _last(path: Path, count: int, end: int | None) -> list[bytes]:
    """The last ``count`` lines before byte ``end``, without reading what stands before them."""
    with path.open("rb") as file:
        start = file.seek(0, 2) if end is None else end
        found = b""
        while start and found.count(b"\n") <= count:
            size = min(_BLOCK_BYTES, start)
            start -= size
            file.seek(start)
            found = file.read(size) + found
    return found.splitlines(keepends=True)[-count:]


def _end_of_lines(file: BinaryIO) -> int:
    """Where the last whole line ends."""
    end = file.seek(0, 2)
    while end:
        start = max(0, end - _BLOCK_BYTES)
        file.seek(start)
        if newline := file.read(end - start).rfind(b"\n") + 1:
            return start + newline
        end = start
    return 0
