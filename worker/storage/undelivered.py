"""Answers that nobody was there for, until whoever asked asks again.

One whose client has gone may go on being drawn. While it is, a file says so, locked by the worker
that draws: the kernel lets go of it with the process. Drawn, the answer is a file until somebody
takes it, which one can, whichever worker that reaches. Names begin with their owner's, who may have
``MAX_OF_ONE``; the guard deletes what is older than ``UNDELIVERED_S``.
"""

import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from worker.bounds import UNDELIVERED_S
from worker.file_lock import try_lock

MAX_OF_ONE = 4
MAX = 64
MAX_BYTES = 256 << 20
"""Of all answers together; one that does not fit is not kept."""

_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}")


@dataclass(frozen=True)
class Answer:
    """To request ``id``."""

    id: str
    headers: Mapping[str, str]
    body: bytes


class Undelivered:
    """Those of all workers of a cell, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def hold(self, name: str) -> "Held | None":
        """Say that the answer called ``name`` is on its way; None where nothing more is kept, or
        somebody else draws it."""
        assert _NAME.fullmatch(name), name
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = [path.name for path in self._folder.iterdir()]
        if len(kept) >= MAX or sum(k[:16] == name[:16] for k in kept) >= MAX_OF_ONE:
            return None
        path = self._folder / f"{name}.coming"
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if not try_lock(fd) or not _is_still(path, fd):
            os.close(fd)
            return None
        os.utime(fd)
        return Held(self._folder, name, fd)

    def is_coming(self, name: str) -> bool:
        """Whether somebody draws it still, who learns that it is asked for."""
        path = self._folder / f"{name}.coming"
        try:
            fd = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            if try_lock(fd, shared=True):  # who drew it has died
                path.unlink(missing_ok=True)
                return False
            os.utime(fd)
            return True
        finally:
            os.close(fd)

    def take(self, name: str) -> Answer | None:
        """Blocks. The answer, which nobody else gets any more, if it is there."""
        taken = self._folder / f"{name}.{secrets.token_hex(4)}"
        try:
            (self._folder / f"{name}.answer").rename(taken)
        except FileNotFoundError:
            return None
        try:
            head, _, body = taken.read_bytes().partition(b"\n")
            too_old = time.time() - taken.stat().st_mtime > UNDELIVERED_S
        finally:
            taken.unlink(missing_ok=True)
        return None if too_old else Answer(**orjson.loads(head), body=body)


class Held:
    """An answer that is on its way."""

    def __init__(self, folder: Path, name: str, fd: int) -> None:
        self._folder, self._name, self._fd = folder, name, fd
        self._path = folder / f"{name}.coming"

    def unasked_s(self) -> float:
        """How long nobody has asked for it."""
        return time.time() - os.fstat(self._fd).st_mtime

    def put(self, answer: Answer) -> None:
        """Blocks. Keep ``answer`` for whoever asks; OSError where it cannot be."""
        size = sum(path.stat().st_size for path in self._folder.glob("*.answer"))
        if size + len(answer.body) > MAX_BYTES:
            return
        head = orjson.dumps({"id": answer.id, "headers": answer.headers})
        written = self._folder / f"{self._name}.{secrets.token_hex(4)}"
        try:
            written.touch(mode=0o600)
            written.write_bytes(b"%b\n%b" % (head, answer.body))
            written.rename(self._folder / f"{self._name}.answer")
        finally:
            written.unlink(missing_ok=True)

    def drop(self) -> None:
        """It is there, or will never be."""
        if _is_still(self._path, self._fd):
            self._path.unlink(missing_ok=True)
        os.close(self._fd)


def _is_still(path: Path, fd: int) -> bool:
    """Whether nobody has deleted what ``fd`` has open."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False
