"""One command at a time changes a cell, and the others are told which one it is."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from worker.file_lock import try_lock


class Held(Exception):
    """Somebody else has the lock; the message says who, since when and for what."""


@contextmanager
def exclusive(path: Path, doing: str, user: str) -> Iterator[None]:
    """Hold the lock ``path`` for what ``user`` typed; it goes with its process, however it ends."""
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8") as file:
        if not try_lock(file):
            raise Held(_holder(file))
        said = {"doing": doing, "user": user, "pid": os.getpid(), "since": time.time()}
        _write(file, json.dumps(said))
        try:
            yield
        finally:
            with suppress(OSError):  # the disk is full: the lock goes all the same
                _write(file, "")


def _write(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def _holder(file: IO[str]) -> str:
    try:
        said = json.loads(file.read())
        since = time.strftime("%H:%M:%S", time.localtime(said["since"]))
        who = f" by {said['user']}" if said.get("user") else ""
        return f"`zimage {said['doing']}`{who} (process {int(said['pid'])}, since {since})"
    except (OSError, ValueError, KeyError, TypeError):  # it has just begun or ends
        return "another zimage command"
