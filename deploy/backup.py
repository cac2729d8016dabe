"""A cell's memory in one file, and back: database, the secret of its keys, pictures on request.

A tar archive of a manifest that says so, ``zimage.db``, ``key-secret``, ``cluster.toml`` (for
people: it is not put back) and ``images/…``: the folder's and the bucket's, which all come back
into the folder. The database is copied through SQLite itself, so that
a running cell goes on writing meanwhile and the copy is whole.
"""

import hashlib
import io
import json
import os
import re
import secrets
import shutil
import sqlite3
import stat
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import quote

from deploy.cell import Cell, CellError
from deploy.host import processes
from deploy.layout import Layout, objects_of
from worker.errors import ObjectsAway
from worker.storage.bucket_images import BucketImages
from worker.storage.images import is_picture

_DATABASE, _SECRET, _CONFIG, _IMAGES = "zimage.db", "key-secret", "cluster.toml", "images"
_MANIFEST, _MAGIC, _VERSION = "manifest.json", "backup of a zimage-cluster cell", 1
_MAX_MANIFEST_BYTES = 1 << 16
_NAME = re.compile(
    rf"{_MANIFEST}|{_DATABASE}|{_SECRET}|{_CONFIG}|{_IMAGES}/\d{{4}}-\d\d-\d\d/[\w-]+\.\w+"
)
_LOCK_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Summary:
    """``aside``: where the database went that was there before."""

    path: Path
    bytes: int
    pictures: int
    aside: Path | None = None


def backup(cell: Cell, path: Path, *, images: bool) -> Summary:
    """Write ``path``, readable by this user alone, whole or not at all. The cell may run."""
    with whole(path) as file:
        count = write(cell, file, images=images, compress=is_compressed(path))
    return Summary(path, path.stat().st_size, count)


def write(cell: Cell, file: IO[bytes], *, images: bool, compress: bool) -> int:
    """Write the archive into ``file``; how many pictures it has."""
    _require_file(cell)
    if not cell.layout.database.exists():
        raise CellError(f"there is no database {cell.layout.database} yet: zimage up makes it")
    count = 0
    with tempfile.TemporaryDirectory(dir=cell.layout.var_dir) as folder:
        copy = Path(folder) / _DATABASE
        _copy_database(cell.layout.database, copy)
        sources = {
            _DATABASE: copy,
            _SECRET: cell.layout.key_secret,
            _CONFIG: cell.config_path,
        }
        sources = {name: path for name, path in sources.items() if path.exists()}
        mode = "w:gz" if compress else "w"
        with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
            _add_manifest(archive, cell, sources)
            for name, source in sources.items():
                archive.add(source, name)
            for picture in _pictures(cell.layout.images_dir) if images else ():
                count += _add(archive, picture, cell.layout.images_dir)
            if images and cell.config.objects.on:
                count += _add_bucket(archive, cell)
    return count


def _require_file(cell: Cell) -> None:
    """``CellError`` where the database is none that lies in a file here."""
    if cell.layout.postgres_url:
        raise CellError(
            f"the database {cell.layout.database_name} is a server's, which no file of zimage "
            "holds: save it with pg_dump --format=custom and put it back with pg_restore --clean; "
            f"copy {cell.layout.key_secret} beside, without which no key fits, and "
            f"{cell.layout.images_dir}"
        )


def is_compressed(path: Path) -> bool:
    """Whether ``path`` is named as a compressed archive."""
    return path.suffix in {".gz", ".tgz"}


def restore(cell: Cell, path: Path, file: IO[bytes] | None = None) -> Summary:
    """Put back what ``path`` holds; the cell must be down. Present database and secret go aside.

    ``file``: it, opened by somebody who may read it.
    """
    _require_file(cell)
    if processes.members(cell.layout.processes):
        raise CellError("the cell runs: end it first with zimage down")
    cell.layout.create()
    try:
        with (
            tarfile.open(None if file else path, fileobj=file) as archive,
            tempfile.TemporaryDirectory(dir=cell.layout.var_dir) as folder,
        ):
            manifest = _manifest(archive, path)
            # As PEP 706 says for a Python before 3.11.4, such as Debian 12's, which has no filters.
            archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            archive.extractall(folder, _checked(archive, path))
            return _put_back(cell, path, Path(folder), manifest)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise CellError(
            f"{path} cannot be restored: {error}; database and keys are as before"
        ) from error


def _add_manifest(archive: tarfile.TarFile, cell: Cell, sources: dict[str, Path]) -> None:
    said = {
        "what": _MAGIC,
        "version": _VERSION,
        "cell": cell.config.cell.name,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "sha256": {name: _sha256(path) for name, path in sources.items() if name != _CONFIG},
    }
    text = json.dumps(said, indent=2).encode()
    info = tarfile.TarInfo(_MANIFEST)
    info.size, info.mtime, info.mode = len(text), int(time.time()), 0o600
    archive.addfile(info, io.BytesIO(text))


def _manifest(archive: tarfile.TarFile, path: Path) -> dict[str, Any]:
    """What the archive's first member says; ``CellError`` where it is none of ours."""
    first = archive.next()
    ours = first is not None and first.name == _MANIFEST and first.isfile()
    if first is None or not ours or first.size > _MAX_MANIFEST_BYTES:
        raise CellError(
            f"{path} is no backup of a cell, or one of before they had manifests; nothing was "
            "changed. Of such a one put zimage.db and key-secret into cell.var_dir yourself"
        )
    file = archive.extractfile(first)
    assert file is not None
    try:
        said = json.loads(file.read())
        what, version, digests = said["what"], int(said["version"]), dict(said["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise CellError(f"{path} has a damaged manifest ({error}); nothing was changed") from None
    if what != _MAGIC:
        raise CellError(f"{path} is no backup of a cell; nothing was changed")
    if version > _VERSION:
        raise CellError(f"{path} is of a newer kit; restore it with that one. Nothing was changed")
    return digests


def _put_back(cell: Cell, path: Path, folder: Path, digests: dict[str, Any]) -> Summary:
    found, secret = folder / _DATABASE, folder / _SECRET
    if not found.exists():
        raise CellError(f"{path} has no {_DATABASE}: it is no backup of a cell")
    for name, digest in digests.items():
        if not (folder / name).exists() or _sha256(folder / name) != digest:
            raise CellError(f"{name} in {path} is damaged; nothing was changed")
    _require_sound(found, path)
    layout = cell.layout
    pictures = list(_pictures(folder / _IMAGES))
    sources = {layout.database: found} | ({layout.key_secret: secret} if secret.exists() else {})
    # All that may fail for want of room comes first; in the end only names change.
    fresh = {target: _fresh(target) for target in sources}
    try:
        for target, source in sources.items():
            _move(source, fresh[target])
        for picture in pictures:
            target = layout.images_dir / picture.relative_to(folder / _IMAGES)
            target.parent.mkdir(mode=0o700, exist_ok=True)
            _move(picture, target)
        aside = _exchange(layout, fresh)
    finally:
        for left in fresh.values():
            left.unlink(missing_ok=True)
    return Summary(path, _size(path), len(pictures), aside)


def _exchange(layout: Layout, fresh: dict[Path, Path]) -> Path | None:
    """The fresh files take their places; where the database went that was there before.

    A secret that differs goes aside, too: without it no key of that database fits."""
    at = time.strftime("%Y%m%dT%H%M%S")
    if layout.key_secret in fresh and _differ(fresh[layout.key_secret], layout.key_secret):
        layout.key_secret.replace(_aside(layout.key_secret, at))
    aside = _set_aside(layout.database, at)
    for target, ready in fresh.items():
        ready.replace(target)
    return aside


def _fresh(target: Path) -> Path:
    return target.with_name(f".{target.name}.restored")


def _differ(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() != other.read_bytes()


def _aside(path: Path, at: str) -> Path:
    return path.with_name(f"{path.name}.before-{at}")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # root's alone


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy_database(source: Path, target: Path) -> None:
    uri = f"file:{quote(str(source))}?mode=rw"  # never makes a missing one
    try:
        with (
            closing(sqlite3.connect(uri, uri=True, timeout=_LOCK_TIMEOUT_S)) as present,
            closing(sqlite3.connect(target)) as copy,
        ):
            present.backup(copy)
    except sqlite3.Error as error:
        raise CellError(f"{source} cannot be copied: {error}") from error
    _require_sound(target, source)


def _require_sound(database: Path, origin: Path) -> None:
    try:
        with closing(sqlite3.connect(database)) as connection:
            [(verdict,), *_] = connection.execute("PRAGMA integrity_check").fetchall()
    except sqlite3.Error as error:
        verdict = str(error)
    if verdict != "ok":
        raise CellError(f"the database in {origin} is damaged ({verdict}); nothing was changed")


def _set_aside(database: Path, at: str) -> Path | None:
    """Rename the present database, its log as well: what is in there is part of it."""
    aside = _aside(database, at)
    for suffix in ("-wal", "-shm", ""):
        part = Path(f"{database}{suffix}")
        if part.exists():
            part.replace(f"{aside}{suffix}")
    return aside if aside.exists() else None


def _checked(archive: tarfile.TarFile, path: Path) -> list[tarfile.TarInfo]:
    members = archive.getmembers()
    for member in members:
        if not member.isfile() or _NAME.fullmatch(member.name) is None:
            raise CellError(f"{path} has {member.name!r}, which no backup has; nothing was changed")
        member.uid, member.gid, member.mode = os.getuid(), os.getgid(), 0o600
        member.uname = member.gname = ""
    return members


def _pictures(folder: Path) -> Iterator[Path]:
    """Finished ones, without their thumbnails: those are made again when somebody looks."""
    found = sorted(folder.glob("*/*"))
    paths = (path for path in found if path.is_file() and not path.is_symlink())
    return (path for path in paths if _NAME.fullmatch(_name_of(path, folder)))


def _name_of(picture: Path, folder: Path) -> str:
    return str(PurePosixPath(_IMAGES, picture.relative_to(folder)))


def _add(archive: tarfile.TarFile, picture: Path, folder: Path) -> bool:
    try:
        archive.add(picture, _name_of(picture, folder))
    except FileNotFoundError:
        return False  # its time was over
    return True


def _add_bucket(archive: tarfile.TarFile, cell: Cell) -> int:
    """The pictures of the bucket, and those that wait for it."""
    stored, count = BucketImages.of(objects_of(cell.config), cell.layout.var_dir), 0
    try:
        for file in [*stored.bucket.files(), *stored.spool.waiting()]:
            if is_picture(file.name):
                with suppress(FileNotFoundError):  # its time was over
                    data = stored.read(file.name)
                    info = tarfile.TarInfo(f"{_IMAGES}/{file.name}")
                    info.size, info.mtime, info.mode = len(data), int(file.modified_at), 0o600
                    archive.addfile(info, io.BytesIO(data))
                    count += 1
    except ObjectsAway as error:
        raise CellError(f"{cell.config.objects.url}: {error.why}") from None
    return count


def _move(source: Path, target: Path) -> None:
    shutil.move(source, target)
    target.chmod(0o600)


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``path`` in the end, this user's alone, or leaves no trace.

    It is opened as who the caller is now: root's stays root's, whoever writes into it later.
    """
    fresh = f".{path.name}.{secrets.token_hex(8)}.new"
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise CellError(f"{path} cannot be written: {error}") from error
    try:
        _require_own(folder, path)
        # Nobody else can have put a file or a link of that name there.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(fresh, flags, 0o600, dir_fd=folder), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    except OSError as error:
        raise CellError(f"{path} cannot be written: {error}") from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(fresh, dir_fd=folder)
        os.close(folder)


def _require_own(folder: int, path: Path) -> None:
    """``CellError`` where another user could put a file of his own in the place of ours."""
    status = os.fstat(folder)
    open_to_all = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
    if open_to_all or status.st_uid not in {0, os.geteuid()}:
        raise CellError(
            f"{path} cannot be written: others may change what is in {path.parent}, and with a "
            "backup the cell that it is put back to; choose a folder that is yours"
        )
