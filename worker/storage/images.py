"""Pictures as files: safe on the disk when they are stored, and sent by nginx.

``<var_dir>/images/<yyyy-mm-dd>/<id>.<format>``, written whole or not at all; ``<id>.thumb.webp``
beside it is its thumbnail. The secret that signs links is shared by the workers of a cell.
"""

import base64
import contextlib
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from worker.errors import StorageFailed

MIN_FREE_BYTES = 64 << 20
ID = r"(?:[0-9a-f]{32}-\d{1,4}|img_[0-9A-Za-z_-]{1,60})"
"""``<request id>-<k>``, or the name that a job gives its picture."""
_NAME = re.compile(rf"\d{{4}}-\d\d-\d\d/{ID}\.(png|jpeg|webp)")
_ABANDONED_S = 600.0  # a temporary file this old belongs to a dead worker


def link_secret(path: Path) -> bytes:
    """The cell's secret, made by whoever asks first; readable by this user alone."""
    if not path.exists():
        fresh = path.with_suffix(f".{os.getpid()}-{secrets.token_hex(4)}")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(fd)
        try:
            path.hardlink_to(fresh)  # fails where another worker was faster
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return path.read_bytes()


@dataclass(frozen=True)
class Signer:
    """Signs and checks picture names. ``expires`` is in whole seconds since the epoch."""

    secret: bytes

    def sign(self, name: str, expires: int) -> str:
        mac = hmac.new(self.secret, f"{name}\n{expires}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(mac.digest()).decode().rstrip("=")

    def valid(self, name: str, expires: str, signature: str) -> bool:
        """Whether ``signature`` is ours; whether the link has expired is another question."""
        if not re.fullmatch(r"[0-9]{1,12}", expires) or not signature.isascii():
            return False
        return hmac.compare_digest(self.sign(name, int(expires)), signature)


class ImageStore:
    """The folder of pictures. Its methods block: call them from a thread."""

    def __init__(self, folder: Path, ttl_s: float, keep_bytes: int) -> None:
        self._folder = folder
        self._ttl_s = ttl_s
        self._keep_bytes = keep_bytes
        self._days: set[Path] = set()  # folders that are safe on the disk

    def require_room(self) -> None:
        """Raise ``StorageFailed`` before a drawing whose file would not fit."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            free = shutil.disk_usage(self._folder).free
        except OSError as error:
            raise _failed(error.strerror) from error
        if free < MIN_FREE_BYTES:
            raise _failed("the disk is full")

    def save(self, name: str, data: bytes) -> None:
        """Write the picture called ``name``. On return it is whole and survives a power cut."""
        path = self._folder / name
        fresh = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
        try:
            self._make_day(path.parent)
            with fresh.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            _sync_folder(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise _failed(error.strerror) from error

    def _make_day(self, folder: Path) -> None:
        if folder in self._days and folder.is_dir():
            return
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Also where another worker has made it: its own call may not be through yet.
        _sync_folder(folder.parent)
        self._days.add(folder)

    def discard(self, name: str) -> None:
        """Delete a picture that no row names."""
        with contextlib.suppress(OSError):
            (self._folder / name).unlink()

    def holds(self, name: str) -> bool:
        """Whether ``name`` is a picture's name and its file is here."""
        return _NAME.fullmatch(name) is not None and (self._folder / name).is_file()

    def prune(self, lock: Path) -> int:
        """Delete what is too old, then the oldest beyond the allowed size; returns how many.

        Does nothing while another worker holds ``lock``.
        """
        with lock.open("a") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 0
            return self._prune(time.time())

    def _prune(self, now: float) -> int:
        deleted, total = 0, 0
        for path, stat in self._newest_first():
            total += stat.st_size
            max_age_s = _ABANDONED_S if path.name.startswith(".") else self._ttl_s
            if now - stat.st_mtime > max_age_s or total > self._keep_bytes:
                path.unlink(missing_ok=True)
                deleted += 1
        self._remove_empty_days(now)
        return deleted

    def _newest_first(self) -> list[tuple[Path, os.stat_result]]:
        return sorted(self._files(), key=lambda found: -found[1].st_mtime)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self._folder.glob("*/*"):
            try:
                yield path, path.stat()
            except FileNotFoundError:
                continue

    def _remove_empty_days(self, now: float) -> None:
        today = day(now)
        for folder in self._folder.glob("*-*-*"):
            # Today's folder stays: a picture may be on its way there.
            if folder.name < today and not any(folder.iterdir()):
                folder.rmdir()


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def day(at: float) -> str:
    """The folder of a request that arrived at ``at`` (seconds since the epoch, UTC)."""
    return time.strftime("%Y-%m-%d", time.gmtime(at))


def _failed(why: str | None) -> StorageFailed:
    return StorageFailed(
        f"The picture cannot be stored for a link ({why}): ask again with "
        "response_format b64_json, or tell the operators.",
        param="response_format",
    )
