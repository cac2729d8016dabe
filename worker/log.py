"""Log lines as JSON on stdout, one object a line, with bounded fields.

A full or broken pipe must not stop the event loop: lines pass through an outbox, and are dropped
when it is full.
"""

import functools
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from worker.outbox import Outbox

MAX_QUEUED_LINES = 10_000
MAX_FIELD_CHARS = 4_000
_PAUSE_S = 0.05

Value = str | int | float | bool | None
_Event = tuple[float, str, Mapping[str, Value]]

_log = logging.getLogger("worker")
# ASCII: every control character, line separator and change of direction is escaped, so that
# nothing can begin a line of its own or steer the terminal that shows it.
_encode = json.JSONEncoder(ensure_ascii=True).encode
_writer: "LogWriter | None" = None


def lost() -> int:
    """Lines of this process that were not written."""
    return 0 if _writer is None else _writer.lines.lost


def event(name: str, **fields: Value) -> None:
    """Log ``name`` with ``fields``. Prompts do not belong here: logs outlive their pictures."""
    if _writer is None:
        _log.info(name, extra={"fields": fields})
    else:  # a record of the standard library takes longer than all else that a line costs
        _writer.put((time.time(), name, fields))


def failure(name: str, error: BaseException, **fields: Value) -> None:
    """Log ``error`` with its traceback."""
    _log.error(name, exc_info=error, extra={"fields": fields})


class JsonFormatter(logging.Formatter):
    """``{"at", "level", "worker", "event", …fields, "traceback"?}``."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Value] = dict(getattr(record, "fields", {}))
        if record.exc_info:
            # The end of a traceback names the error.
            fields["traceback"] = self.formatException(record.exc_info)[-MAX_FIELD_CHARS:]
        return self.line(record.created, record.levelname.lower(), record.getMessage(), fields)

    def line(self, at: float, level: str, name: str, fields: Mapping[str, Value]) -> str:
        """One event as JSON; ``at`` in seconds since the epoch."""
        line = {
            "at": timestamp(at),
            "level": level,
            "worker": self._worker,
            "event": name,
            **fields,
        }
        for key, value in line.items():
            if isinstance(value, str):
                line[key] = value[:MAX_FIELD_CHARS]
        return as_json(line)


class LogWriter(logging.Handler):
    """Takes over the root logger until ``close``."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        logging.raiseExceptions = False  # a broken pipe must not add lines about itself
        # What no line shows need not be looked up: logging's own advice (HOWTO, "Optimization").
        logging._srcfile = None
        logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
        self._json = JsonFormatter(worker)
        self._stdout = sys.stdout
        self.lines = Outbox[logging.LogRecord | _Event](self._write_out, MAX_QUEUED_LINES, _PAUSE_S)
        self.put = self.lines.put
        """Queue a line, or lose it where too many wait."""
        threading.Thread(target=self.lines.run, name="log", daemon=True).start()
        self._take_over()

    def _take_over(self) -> None:
        global _writer
        _writer = self
        root = logging.getLogger()
        root.handlers[:] = [self]
        root.setLevel(logging.INFO)
        logging.getLogger("uvicorn").setLevel(logging.WARNING)  # we log our own start and end

    def emit(self, record: logging.LogRecord) -> None:
        self.put(record)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued, for at most ``timeout_s``: the reader of stdout may be stopped."""
        global _writer
        _writer = None
        self.lines.close(timeout_s)
        super().close()

    def _write_out(self, lines: Iterator[logging.LogRecord | _Event]) -> None:
        texts: list[str] = []
        try:
            texts += map(self._text, lines)
            self._stdout.write("".join(texts))
            self._stdout.flush()
        except Exception:  # nobody reads, it is closed, or memory is short
            self.lines.unwritten += len(texts)

    def _text(self, line: logging.LogRecord | _Event) -> str:
        try:
            return self._formatted(line) + "\n"
        except Exception as error:  # one bad line must not end all others
            return self._json.line(time.time(), "error", "bad log line", {"why": str(error)}) + "\n"

    def _formatted(self, line: logging.LogRecord | _Event) -> str:
        if isinstance(line, logging.LogRecord):
            return self._json.format(line)
        at, name, fields = line
        return self._json.line(at, "info", name, fields)


def as_json(fields: Mapping[str, Any]) -> str:
    """``fields`` as one line of ASCII that every reader of JSON takes: what is half of a surrogate
    pair, such as a byte of a file's name that is no UTF-8, becomes a replacement character."""
    line = _encode(fields)
    return _encode(_whole(fields)) if "\\ud" in line else line


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {_whole(key): _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list | tuple) else value


def timestamp(seconds: float) -> str:
    """UTC in ISO 8601, to the millisecond."""
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{_second(whole)}.{milliseconds:03d}Z"


@functools.lru_cache(4)
def _second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
