"""What happened, as JSON lines for a log and as the last events and alarms for people."""

import json
import logging
import sys
import time
from collections import deque
from typing import Any

_log = logging.getLogger("guard")
_KEPT_EVENTS = 50


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"at": round(record.created, 3), "level": record.levelname.lower()}
        line |= record.__dict__.get("fields", {})
        line["what"] = record.getMessage()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_to_stdout() -> None:
    """One JSON object a line; supervisor writes and rotates the file."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class Journal:
    def __init__(self) -> None:
        self.events: deque[dict[str, Any]] = deque(maxlen=_KEPT_EVENTS)
        self._alarms: dict[tuple[str, str | None], dict[str, Any]] = {}
        self.news = True
        """Something was added since somebody last set this to False."""

    @property
    def alarms(self) -> list[dict[str, Any]]:
        return list(self._alarms.values())

    def event(self, what: str, worker: str | None = None, level: int = logging.INFO) -> None:
        self.events.append({"at": round(time.time(), 3), "worker": worker, "what": what})
        self.news = True
        _log.log(level, what, extra={"fields": {"worker": worker} if worker else {}})

    def alarm(self, name: str, text: str, worker: str | None = None) -> None:
        """Raise the alarm ``name``; one that is already raised stays as it is."""
        if (name, worker) in self._alarms:
            return
        since = round(time.time(), 3)
        alarm = {"name": name, "worker": worker, "since": since, "text": text}
        self._alarms[name, worker] = alarm
        self.event(f"alarm {name}: {text}", worker, logging.ERROR)

    def clear(self, name: str, worker: str | None = None) -> None:
        if self._alarms.pop((name, worker), None) is not None:
            self.event(f"alarm {name} is over", worker)

    def set(self, name: str, on: bool, text: str, worker: str | None = None) -> None:
        """Raise or clear, as ``on`` says."""
        if on:
            self.alarm(name, text, worker)
        else:
            self.clear(name, worker)
