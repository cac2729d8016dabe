"""What waits on this host's disk for a store that is away: pictures, and which ones are deleted.

Shared by the workers of a host, and safe on the disk.
"""

import contextlib
import fcntl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from worker.file_lock import try_lock
from worker.storage.images import ImageStore, StoredFile, not_stored

_ROOM_BYTES = 16 << 20
"""What must be free before something is drawn for the spool: a large picture."""


class Spool:
    """At most ``max_bytes`` in ``folder``. Its methods block."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.pictures = ImageStore(folder / "pictures")
        self._folder = folder
        self._deleted = folder / "deleted"
        self._max_bytes = max_bytes

    def require_room(self) -> None:
        """Raise ``StorageFailed`` before a drawing whose file would not fit."""
        self.pictures.require_room()
        self._require(_ROOM_BYTES)

    def add(self, pictures: Sequence[tuple[str, bytes]]) -> None:
        """Take pictures, safe on the disk on return; ``StorageFailed`` where they do not fit."""
        with self._locked():
            self._require(sum(len(data) for _, data in pictures))
            self.pictures.save_all(pictures)

    def _require(self, more: int) -> None:
        if self.bytes + more > self._max_bytes:
            raise not_stored("the store of pictures is away and the spool is full")

    @property
    def bytes(self) -> int:
        """Of all pictures that wait."""
        return sum(file.bytes for file in self.pictures.files())

    def waiting(self) -> list[StoredFile]:
        """Finished pictures, oldest first."""
        found = [file for file in self.pictures.files() if not file.unfinished]
        return sorted(found, key=lambda file: file.modified_at)

    # What is deleted here and not yet in the store

    def note_deleted(self, names: Sequence[str]) -> None:
        """These are deleted, and the store shall hear of it."""
        for name in names:
            path = self._deleted / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch()

    def is_deleted(self, name: str) -> bool:
        return (self._deleted / name).exists()

    def deleted(self) -> list[str]:
        return [f"{path.parent.name}/{path.name}" for path in self._deleted.glob("*/*")]

    def forget_deleted(self, names: Sequence[str]) -> None:
        """The store has heard of these."""
        for name in names:
            (self._deleted / name).unlink(missing_ok=True)

    # One at a time

    @contextlib.contextmanager
    def draining(self) -> Iterator[bool]:
        """Whether it is this process's turn to bring things to the store."""
        with self._opened("drain.lock") as file:
            yield try_lock(file)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._opened("lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _opened(self, name: str) -> IO[str]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return (self._folder / name).open("a", encoding="utf-8")
