"""A cell's memory in one file: database, the secret of its keys, pictures on request.

A tar archive, in this order: a manifest that says so; ``zimage.db`` or, of PostgreSQL,
``zimage.dump`` as pg_dump writes it; ``key-secret``, ``cluster/…`` and ``cluster.toml`` (for
people: it is not put back); ``images/…``, the folder's and the bucket's; ``images.sha256``, which
``sha256sum -c`` reads; and ``images.missing``. The database is copied as of one moment while a
running cell goes on writing, and then the pictures, which never change. So all that its rows name
is there but what somebody deletes meanwhile: that is named in ``images.missing``, and its rows do
not come back.
"""

import fcntl
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import quote

from deploy import store
from deploy.cell import Cell, CellError
from deploy.dump import Server
from deploy.layout import objects_of
from worker.errors import ObjectsAway
from worker.storage.bucket_images import BucketImages
from worker.storage.images import ImageStore, is_picture

if TYPE_CHECKING:
    from worker.storage.inventory import Inventory

DATABASE, DUMP, SECRET, CONFIG = "zimage.db", "zimage.dump", "key-secret", "cluster.toml"
CLUSTER, IMAGES, DIGESTS, MISSING = "cluster", "images", "images.sha256", "images.missing"
MANIFEST, MAGIC, VERSION = "manifest.json", "backup of a zimage-cluster cell", 2
MEMBER = re.compile(
    rf"{MANIFEST}|{DATABASE}|{DUMP}|{SECRET}|{CONFIG}|{DIGESTS}|{MISSING}|{CLUSTER}/[\w-]+(\.\w+)?"
    rf"|{IMAGES}/\d{{4}}-\d\d-\d\d/[\w-]+\.\w+"
)
_LOCK_TIMEOUT_S = 60.0
_SCRATCH = ".backup-"
_SURELY_BEGUN_S = 60.0  # between a folder and its lock
_AT_ONCE = 8  # pictures, in memory


@dataclass(frozen=True)
class Written:
    """``deleted``: pictures that went while the backup was made. ``lost``: those that the gallery
    still names and that are nowhere."""

    pictures: int = 0
    deleted: int = 0
    lost: list[str] = field(default_factory=list)


def backup(cell: Cell, path: Path, *, images: bool) -> Written:
    """Write ``path``, readable by this user alone, whole or not at all. The cell may run."""
    with whole(path) as file:
        return write(cell, file, images=images, compress=is_compressed(path))


def write(cell: Cell, file: IO[bytes], *, images: bool, compress: bool) -> Written:
    """Write the archive into ``file``."""
    cell.layout.create()
    with scratch(cell) as folder:
        copy, held = _copied(cell, folder)
        sources = {
            copy.name: copy,
            SECRET: cell.layout.key_secret,
            **{f"{CLUSTER}/{path.name}": path for path in cell.layout.cluster_dir.glob("*")},
            CONFIG: cell.config_path,
        }
        sources = {n: p for n, p in sources.items() if p.is_file() and MEMBER.fullmatch(n)}
        mode = "w:gz" if compress else "w"
        with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
            _add(archive, MANIFEST, _manifest(cell, sources, held, images), time.time())
            for name, source in sources.items():
                archive.add(source, name)
            done = _add_pictures(archive, cell, held) if images else Written()
        file.flush()  # a child process ends without
    return done


@contextmanager
def scratch(cell: Cell) -> Iterator[Path]:
    """A folder that goes again, as do those of commands that were killed: secrets lie in there."""
    for left in cell.layout.var_dir.glob(f"{_SCRATCH}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _SURELY_BEGUN_S:
                with _locked(left):
                    shutil.rmtree(left)
    with (
        tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=cell.layout.var_dir) as folder,
        _locked(Path(folder)),
    ):
        yield Path(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """``OSError`` where another process has it."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def is_compressed(path: Path) -> bool:
    """Whether ``path`` is named as a compressed archive."""
    return path.suffix in {".gz", ".tgz"}


def server_of(cell: Cell) -> Server:
    """The database of a cell that has one in PostgreSQL."""
    return Server(cell.layout.database_url, cell.layout.database_name)


def kept_by(cell: Cell) -> BucketImages | ImageStore:
    """Where its pictures lie."""
    objects = objects_of(cell.config)
    if objects.on:
        return BucketImages.of(objects, cell.layout.var_dir)
    return ImageStore(cell.layout.images_dir)


def _copied(cell: Cell, folder: Path) -> "tuple[Path, Inventory]":
    """A copy of the database as of one moment, and what it holds."""
    return _dumped(cell, folder / DUMP) if cell.layout.postgres_url else _file(cell, folder)


def _dumped(cell: Cell, copy: Path) -> "tuple[Path, Inventory]":
    from worker.storage import inventory, postgres

    with store.connected(cell) as connection, postgres.snapshot(connection) as moment:
        held = inventory.take(connection)
        server_of(cell).save(copy, moment)
    return copy, held


def _file(cell: Cell, folder: Path) -> "tuple[Path, Inventory]":
    copy = folder / DATABASE
    if not cell.layout.database.exists():
        raise CellError(f"there is no database {cell.layout.database} yet: zimage up makes it")
    _copy_database(cell.layout.database, copy)
    return copy, inventory_of(copy)


def inventory_of(database: Path) -> "Inventory":
    """What an SQLite file holds that nobody else has open."""
    import sqlalchemy as sa

    from worker.storage import inventory
    from worker.storage.database import sqlite_url

    engine = sa.create_engine(sqlite_url(database))
    try:
        with engine.connect() as connection:
            return inventory.take(connection)
    finally:
        engine.dispose()


def _manifest(cell: Cell, sources: dict[str, Path], held: "Inventory", images: bool) -> bytes:
    said = {
        "what": MAGIC,
        "version": VERSION,
        "cell": cell.config.cell.name,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "sha256": {name: sha256_of(path) for name, path in sources.items() if name != CONFIG},
        "rows": held.tables,
        "images": images,
    }
    return json.dumps(said, indent=2).encode()


def _add(archive: tarfile.TarFile, name: str, data: bytes, at: float) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), int(at), 0o600
    archive.addfile(info, io.BytesIO(data))


def _add_pictures(archive: tarfile.TarFile, cell: Cell, held: "Inventory") -> Written:
    """Finished ones, without their thumbnails: those are made again when somebody looks."""
    kept, digests = kept_by(cell), dict[str, str]()

    def add(found: dict[str, float]) -> None:
        for name, data in _read(kept, sorted(found)):
            _add(archive, f"{IMAGES}/{name}", data, found[name])
            digests[name] = hashlib.sha256(data).hexdigest()

    try:
        add({file.name: file.modified_at for file in kept.files() if is_picture(file.name)})
        # What was on its way from one place to another when the names were listed.
        add(dict.fromkeys(held.pictures - digests.keys(), time.time()))
    except ObjectsAway as error:
        raise CellError(f"{cell.config.objects.url}: {error.why}") from None
    missing = sorted(held.pictures - digests.keys())
    lines = "".join(f"{digest}  {IMAGES}/{name}\n" for name, digest in digests.items())
    _add(archive, DIGESTS, lines.encode(), time.time())
    _add(archive, MISSING, "".join(f"{name}\n" for name in missing).encode(), time.time())
    lost = sorted(set(missing) & set(store.run(cell, store.gallery.names))) if missing else []
    return Written(len(digests), len(missing) - len(lost), lost)


def _read(kept: BucketImages | ImageStore, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Pictures in their order, some at a time: a store takes as long for one as for several."""

    def read(name: str) -> bytes | None:
        with suppress(FileNotFoundError):  # its time was over
            return kept.read(name)
        return None

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="backup") as threads:
        for k in range(0, len(names), _AT_ONCE):
            some = names[k : k + _AT_ONCE]
            for name, data in zip(some, threads.map(read, some), strict=True):
                if data is not None:
                    yield name, data


def sha256_of(path: Path) -> str:
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
    require_sound(target, source)


def require_sound(database: Path, origin: Path) -> None:
    """``CellError`` where SQLite finds a file of its own damaged."""
    try:
        with closing(sqlite3.connect(database)) as connection:
            [(verdict,), *_] = connection.execute("PRAGMA integrity_check").fetchall()
    except sqlite3.Error as error:
        verdict = str(error)
    if verdict != "ok":
        raise CellError(f"the database in {origin} is damaged ({verdict}); nothing was changed")


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
