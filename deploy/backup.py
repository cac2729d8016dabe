"""A cell's memory in one file, and back: database, the secret of its keys, pictures on request.

A tar archive of ``zimage.db``, ``key-secret``, ``cluster.toml`` (for people: it is not put back)
and ``images/…``. The database is copied through SQLite itself, so that a running cell goes on
writing meanwhile and the copy is whole.
"""

import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from deploy import processes
from deploy.cell import Cell, CellError

_DATABASE, _SECRET, _CONFIG, _IMAGES = "zimage.db", "key-secret", "cluster.toml", "images"
_NAME = re.compile(rf"{_DATABASE}|{_SECRET}|{_CONFIG}|{_IMAGES}/\d{{4}}-\d\d-\d\d/[\w-]+\.\w+")
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
    if not cell.layout.database.exists():
        raise CellError(f"there is no database {cell.layout.database} yet: zimage up makes it")
    count = 0
    with _fresh(path) as file, tempfile.TemporaryDirectory(dir=cell.layout.var_dir) as folder:
        copy = Path(folder) / _DATABASE
        _copy_database(cell.layout.database, copy)
        mode = "w:gz" if path.suffix in {".gz", ".tgz"} else "w"
        with tarfile.open(file, mode) as archive:  # type: ignore[call-overload]
            archive.add(copy, _DATABASE)
            for source, name in (
                (cell.layout.key_secret, _SECRET),
                (cell.config_path, _CONFIG),
            ):
                if source.exists():
                    archive.add(source, name)
            for picture in _pictures(cell.layout.images_dir) if images else ():
                count += _add(archive, picture, cell.layout.images_dir)
    return Summary(path, path.stat().st_size, count)


def restore(cell: Cell, path: Path) -> Summary:
    """Put back what ``path`` holds; the cell must be down. The present database goes aside."""
    if processes.members(cell.layout.processes):
        raise CellError("the cell runs: end it first with zimage down")
    cell.layout.create()
    try:
        with (
            tarfile.open(path) as archive,
            tempfile.TemporaryDirectory(dir=cell.layout.var_dir) as folder,
        ):
            # As PEP 706 says for a Python before 3.11.4, such as Debian 12's, which has no filters.
            archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            archive.extractall(folder, _checked(archive, path))
            return _put_back(cell, path, Path(folder))
    except (OSError, tarfile.TarError) as error:
        raise CellError(f"{path} cannot be restored: {error}; nothing was changed") from error


def _put_back(cell: Cell, path: Path, folder: Path) -> Summary:
    found = folder / _DATABASE
    if not found.exists():
        raise CellError(f"{path} has no {_DATABASE}: it is no backup of a cell")
    _require_sound(found, path)
    aside = _set_aside(cell.layout.database)
    _move(found, cell.layout.database)
    if (folder / _SECRET).exists():
        _move(folder / _SECRET, cell.layout.key_secret)
    pictures = list(_pictures(folder / _IMAGES))
    for picture in pictures:
        target = cell.layout.images_dir / picture.relative_to(folder / _IMAGES)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        _move(picture, target)
    return Summary(path, path.stat().st_size, len(pictures), aside)


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


def _set_aside(database: Path) -> Path | None:
    """Rename the present database, its log as well: what is in there is part of it."""
    aside = database.with_name(f"{database.name}.before-{time.strftime('%Y%m%dT%H%M%S')}")
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
    paths = (path for path in sorted(folder.glob("*/*")) if path.is_file())
    return (path for path in paths if _NAME.fullmatch(_name_of(path, folder)))


def _name_of(picture: Path, folder: Path) -> str:
    return str(PurePosixPath(_IMAGES, picture.relative_to(folder)))


def _add(archive: tarfile.TarFile, picture: Path, folder: Path) -> bool:
    try:
        archive.add(picture, _name_of(picture, folder))
    except FileNotFoundError:
        return False  # its time was over
    return True


def _move(source: Path, target: Path) -> None:
    shutil.move(source, target)
    target.chmod(0o600)


@contextmanager
def _fresh(path: Path) -> Iterator[Path]:
    """A file beside ``path`` that takes its place in the end."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        yield fresh
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise CellError(f"{path} cannot be written: {error}") from error
    finally:
        fresh.unlink(missing_ok=True)
