"""All pictures from the folder into the bucket, or back, while a cell draws and people look.

A file is read again where it went and compared before it goes where it was, so whoever is cut short
begins again and goes on. A few are under way at a time.
"""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

from worker.storage.bucket_images import BucketImages
from worker.storage.images import StoredFile, is_file

_AT_ONCE = 4
_QUEUED = 64


@dataclass
class Moved:
    """``of``: files that there were. ``gone``: deleted by others meanwhile. ``damaged``: the names
    of those whose copy differs; they stay where they were."""

    of: int
    files: int = 0
    bytes: int = 0
    gone: int = 0
    damaged: list[str] = field(default_factory=list)

    @property
    def done(self) -> int:
        """All that need no more of us."""
        return self.files + self.gone + len(self.damaged)


def into_bucket(images: BucketImages, told: Callable[[Moved], None]) -> Moved:
    """Empty the folder of finished pictures and thumbnails; ``told`` hears after each. Raises
    ``ObjectsAway``."""
    files = [file for file in images.folder.files() if is_file(file.name)]
    return _moved(files, lambda name: _put(images, name), told)


def into_folder(images: BucketImages, told: Callable[[Moved], None]) -> Moved:
    """Empty the bucket, and what waits for it. Raises ``ObjectsAway`` or ``StorageFailed``."""
    files = [*images.spool.waiting(), *images.bucket.files()]
    return _moved(files, lambda name: _take(images, name), told)


def _moved(
    files: list[StoredFile], one: Callable[[str], bool | None], told: Callable[[Moved], None]
) -> Moved:
    moved = Moved(of=len(files))
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="move") as threads:
        for some in _parts(files):
            waiting = {threads.submit(one, file.name): file for file in some}
            for ended in as_completed(waiting):
                file = waiting[ended]
                match ended.result():
                    case None:
                        moved.gone += 1
                    case True:
                        moved.files, moved.bytes = moved.files + 1, moved.bytes + file.bytes
                    case False:
                        moved.damaged.append(file.name)
                told(moved)
    return moved


def _parts(files: list[StoredFile]) -> Iterable[list[StoredFile]]:
    return (files[k : k + _QUEUED] for k in range(0, len(files), _QUEUED))


def _put(images: BucketImages, name: str) -> bool | None:
    """Whether its copy is the same; None: it is deleted."""
    folder, bucket = images.folder, images.bucket
    try:
        data = folder.read(name)
        bucket.put(name, data)
        same = _digest(bucket.get(name)) == _digest(data)
    except FileNotFoundError:
        return None
    if not folder.has(name):  # its owner deletes it at this moment
        bucket.delete([name])
        return None
    if same:
        folder.path(name).unlink(missing_ok=True)
    return same


def _take(images: BucketImages, name: str) -> bool | None:
    try:
        data = images.read(name)
    except FileNotFoundError:
        return None
    images.folder.require_room()
    images.folder.save(name, data)
    if _digest(images.folder.read(name)) != _digest(data):
        return False
    images.spool.pictures.path(name).unlink(missing_ok=True)
    images.bucket.delete([name])
    return True


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
