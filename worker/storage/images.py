"""Where pictures are kept: what any such place promises, and a folder that does.

``<yyyy-mm-dd>/<id>.<format>``, written whole or not at all; ``<id>.thumb.webp`` beside it is its
thumbnail. The secret that signs links is shared by the workers of a cell.
"""

import base64
import contextlib
import hashlib
import hmac
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from worker.errors import NotFound, PictureElsewhere, StorageFailed, ZimageError
from worker.storage.secret import Signing

MIN_FREE_BYTES = 64 << 20
ID = r"(?:[0-9a-f]{32}-\d{1,4}|img_[0-9A-Za-z_-]{1,60})"
"""``<request id>-<k>``, or the name that a job gives its picture."""
LOCATION = "/internal/images/"
"""Where nginx finds the files of ``ImageStore``."""
_MAY_BE_ELSEWHERE_S = 86_400.0
"""So long a missing picture may wait on another host for the store; after that it is taken for
lost."""
_NAME = re.compile(rf"\d{{4}}-\d\d-\d\d/{ID}\.(png|jpeg|webp)")
_UPLOAD = r"upload_[0-9a-f]{32}\.png"
_FILE = re.compile(rf"\d{{4}}-\d\d-\d\d/(?:{ID}\.(png|jpeg|webp|thumb\.webp)|{_UPLOAD})")


@dataclass(frozen=True)
class Signer:
    """Signs and checks picture names. ``expires`` is in whole seconds since the epoch."""

    signing: Signing

    def sign(self, name: str, expires: int) -> str:
        return _signature(self.signing()[0], name, expires)

    def valid(self, name: str, expires: str, signature: str) -> bool:
        """Whether ``signature`` is ours; whether the link has expired is another question."""
        if not re.fullmatch(r"[0-9]{1,12}", expires) or not signature.isascii():
            return False
        return any(
            hmac.compare_digest(_signature(secret, name, int(expires)), signature)
            for secret in self.signing()
        )


def _signature(secret: bytes, name: str, expires: int) -> str:
    mac = hmac.new(secret, f"{name}\n{expires}".encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(mac.digest()).decode().rstrip("=")


@dataclass(frozen=True)
class StoredFile:
    """``name`` as for ``ImageStore``; ``modified_at`` in seconds since the epoch."""

    name: str
    bytes: int
    modified_at: float

    @property
    def day(self) -> str:
        """Its folder."""
        return self.name.partition("/")[0]

    @property
    def id(self) -> str:
        """Of its picture; of an unfinished file nothing that any picture has."""
        return self.name.partition("/")[2].partition(".")[0]

    @property
    def unfinished(self) -> bool:
        return self.name.partition("/")[2].startswith(".")


def thumbnail_of(name: str) -> str:
    """The name of the thumbnail of picture ``name``."""
    return f"{name.rpartition('.')[0]}.thumb.webp"


class Images(Protocol):
    """A place for pictures. Its methods block: call them from a thread.

    Each may raise ``StoreAway`` where the place cannot be reached now; a picture that is not there
    is ``FileNotFoundError``.
    """

    def require_room(self) -> None:
        """Raise ``StorageFailed`` before a drawing whose file would not fit."""

    def require_home(self) -> None:
        """The same for a drawing that can wait until its file would lie where all files lie."""

    def save(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write the picture called ``name``, whole or not at all. ``durable``: on return it
        survives a power cut."""

    def save_all(self, pictures: Sequence[tuple[str, bytes]], *, durable: bool = True) -> None:
        """``save`` for several, each a name and its data; where one fails, some may be missing."""

    def holds(self, name: str) -> bool:
        """Whether ``name`` is the name of a picture that is here."""

    def has(self, name: str) -> bool:
        """Whether a picture or thumbnail called ``name`` is here."""

    def read(self, name: str) -> bytes:
        """The picture or thumbnail called ``name``."""

    def address(self, name: str) -> str:
        """Where nginx finds the picture or thumbnail called ``name``, for ``X-Accel-Redirect``."""

    def delete(self, names: Iterable[str]) -> None:
        """Delete pictures and their thumbnails, as far as they are there. One that cannot be
        deleted keeps no other; then raises ``OSError``."""

    def files(self, *, shared: bool = True) -> list[StoredFile]:
        """Everything that lies here, thumbnails and what a dead worker left included; of a place
        that other hosts have as well, where it is not to be ``shared``, what this host alone has.
        """

    def remove_empty_days(self, now: float) -> None:
        """Of days before the one of ``now``: a picture may be on its way to today's."""


class ImageStore:
    """A folder of pictures, safe on the disk when they are stored, and sent by nginx."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._days: set[Path] = set()  # folders that are safe on the disk

    def require_room(self) -> None:
        """Raise ``StorageFailed`` before a drawing whose file would not fit."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            free = shutil.disk_usage(self._folder).free
        except OSError as error:
            raise not_stored(error.strerror) from error
        if free < MIN_FREE_BYTES:
            raise not_stored("the disk is full")

    def require_home(self) -> None:
        """Raise ``StorageFailed`` as ``require_room``."""
        self.require_room()

    def save(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write the picture called ``name``, whole or not at all. ``durable``: on return it
        survives a power cut."""
        self.save_all([(name, data)], durable=durable)

    def save_all(self, pictures: Sequence[tuple[str, bytes]], *, durable: bool = True) -> None:
        """``save`` for several, each a name and its data; where one fails, some may be missing.

        All are written before the first is synced, so that one commit of the file system's
        journal serves them all."""
        paths = [self._folder / name for name, _ in pictures]
        fresh = [path.with_name(f".{path.name}.{_writer()}") for path in paths]
        folders = {path.parent for path in paths}
        try:
            for folder in folders:
                self._make_day(folder)
            for path, (_, data) in zip(fresh, pictures, strict=True):
                path.write_bytes(data)
            for path in fresh if durable else ():
                _sync(path)
            for path, final in zip(fresh, paths, strict=True):
                path.replace(final)
            for folder in folders if durable else ():
                _sync(folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                for path in fresh:
                    path.unlink(missing_ok=True)
            raise not_stored(error.strerror) from error

    def _make_day(self, folder: Path) -> None:
        if folder in self._days and folder.is_dir():
            return
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Also where another worker has made it: its own call may not be through yet.
        _sync(folder.parent)
        self._days.add(folder)

    def holds(self, name: str) -> bool:
        """Whether ``name`` is a picture's name and its file is here."""
        return is_picture(name) and self.has(name)

    def has(self, name: str) -> bool:
        """Whether a picture or thumbnail called ``name`` is here."""
        return self.path(name).is_file()

    def read(self, name: str) -> bytes:
        """The picture or thumbnail called ``name``."""
        return self.path(name).read_bytes()

    def address(self, name: str) -> str:
        """Where nginx finds the picture or thumbnail called ``name``."""
        return LOCATION + name

    def path(self, name: str) -> Path:
        """Where the picture or thumbnail called ``name`` lies."""
        return self._folder / name

    def delete(self, names: Iterable[str]) -> None:
        """Delete pictures and their thumbnails, as far as they are there. One that cannot be
        deleted keeps no other; then raises ``OSError``."""
        failed: OSError | None = None
        for name in names:
            for path in (self._folder / name, self._folder / thumbnail_of(name)):
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    failed = error
        if failed is not None:
            raise failed

    def files(self, *, shared: bool = True) -> list[StoredFile]:
        """Everything that lies here, thumbnails and what a dead worker left included."""
        return [
            StoredFile(f"{path.parent.name}/{path.name}", found.st_size, found.st_mtime)
            for path, found in self._stats()
        ]

    def _stats(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self._folder.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                if stat.S_ISREG(found.st_mode):
                    yield path, found

    def remove_empty_days(self, now: float) -> None:
        """Of days before the one of ``now``: a picture may be on its way to today's."""
        for folder in self._folder.glob("*-*-*"):
            if folder.name < day(now):
                with contextlib.suppress(OSError):  # it holds something
                    folder.rmdir()


def _writer() -> str:
    return f"{os.getpid()}-{threading.get_ident()}"


def _sync(path: Path) -> None:
    """Bring a file's content, or a folder's names, safely to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def day(at: float) -> str:
    """The folder of a request that arrived at ``at`` (seconds since the epoch, UTC)."""
    return time.strftime("%Y-%m-%d", time.gmtime(at))


def is_picture(name: str) -> bool:
    """Whether a picture, and no thumbnail, could be called ``name``."""
    return _NAME.fullmatch(name) is not None


def is_file(name: str) -> bool:
    """Whether a finished picture, thumbnail or upload could be called ``name``."""
    return _FILE.fullmatch(name) is not None


def lost(id: str, created_at: float, remedy: str, *, shared: bool) -> ZimageError:
    """What to say of picture ``id``, which has a row, and whose file is not to be found.
    ``shared``: it may lie with another host, which has not brought it to the store yet."""
    if shared and time.time() - created_at < _MAY_BE_ELSEWHERE_S:
        return PictureElsewhere(id)
    return NotFound(f"The file of picture {id} is gone: {remedy}.")


def not_stored(why: str | None) -> StorageFailed:
    """The error of a picture for whose file there is no place."""
    return StorageFailed(
        f"The picture cannot be stored for a link ({why}): ask again with "
        "response_format b64_json, or tell the operators.",
        param="response_format",
    )
