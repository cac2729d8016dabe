"""Log lines as JSON on stdout, one object a line, with bounded fields.

A full or broken pipe must not stop the event loop: lines pass through a bounded queue to one
thread, and are dropped when it is full.
"""

import contextlib
import json
import logging
import logging.handlers
import queue
import sys
import time
from collections.abc import Mapping

MAX_QUEUED_LINES = 10_000
MAX_FIELD_CHARS = 4_000
_COALESCE_S = 0.05

Value = str | int | float | bool | None

_log = logging.getLogger("worker")
_encode = json.JSONEncoder().encode


def event(name: str, **fields: Value) -> None:
    """Log ``name`` with ``fields``. Prompts do not belong here: logs outlive their pictures."""
    _log.info(name, extra={"fields": fields})


def failure(name: str, error: BaseException, **fields: Value) -> None:
    """Log ``error`` with its traceback."""
    _log.error(name, exc_info=error, extra={"fields": fields})


class JsonFormatter(logging.Formatter):
    """``{"at", "level", "logger", "event", …fields, "traceback"?}``."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        fields: Mapping[str, Value] = getattr(record, "fields", {})
        line: dict[str, Value] = {
            "at": timestamp(record.created),
            "level": record.levelname.lower(),
            "worker": self._worker,
            "event": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            # The end of a traceback names the error.
            line["traceback"] = self.formatException(record.exc_info)[-MAX_FIELD_CHARS:]
        return _encode({key: _bounded(value) for key, value in line.items()})


class _DroppingQueueHandler(logging.handlers.QueueHandler):
    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record  # same process: the formatter still wants exc_info

    def enqueue(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(record)


class _CoalescingListener(logging.handlers.QueueListener):
    """Wakes for many lines at once: a thread that wakes for each takes the GIL each time."""

    def dequeue(self, block: bool) -> logging.LogRecord:
        with contextlib.suppress(queue.Empty):
            return super().dequeue(False)
        time.sleep(_COALESCE_S)
        return super().dequeue(block)


class LogWriter:
    """Takes over the root logger until ``close``."""

    def __init__(self, worker: str) -> None:
        logging.raiseExceptions = False  # a broken pipe must not add lines about itself
        # What no line shows need not be looked up: logging's own advice (HOWTO, "Optimization").
        logging._srcfile = None
        logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
        lines: queue.Queue[logging.LogRecord] = queue.Queue(MAX_QUEUED_LINES)
        stdout = logging.StreamHandler(sys.stdout)
        stdout.setFormatter(JsonFormatter(worker))
        self._queue = lines
        self._listener = _CoalescingListener(lines, stdout)
        root = logging.getLogger()
        root.handlers[:] = [_DroppingQueueHandler(lines)]
        root.setLevel(logging.INFO)
        logging.getLogger("uvicorn").setLevel(logging.WARNING)  # we log our own start and end
        self._listener.start()

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued, for at most ``timeout_s``: the reader of stdout may be stopped."""
        deadline = time.monotonic() + timeout_s
        while not self._queue.empty() and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            self._listener.enqueue_sentinel()
        except queue.Full:
            return
        if (thread := self._listener._thread) is not None:
            thread.join(max(0.05, deadline - time.monotonic()))


def timestamp(seconds: float) -> str:
    """UTC in ISO 8601, to the millisecond."""
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{milliseconds:03d}Z"


def _bounded(value: Value) -> Value:
    return value[:MAX_FIELD_CHARS] if isinstance(value, str) else value
