"""What ``backup`` wrote is put back, or tried: the whole archive is looked at before anything is
changed, and what is there goes aside.

First the pictures, which only add, then the database, all of it or nothing, then the secret: so
whoever is cut short types the same command again.
"""

import json
import os
import shutil
import sqlite3
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from deploy import backup as archives
from deploy import store
from deploy.backup import DATABASE, DIGESTS, DUMP, IMAGES, MISSING, SECRET, sha256_of
from deploy.cell import Cell, CellError
from deploy.dump import Server
from deploy.host import processes
from deploy.layout import Layout, objects_of
from worker.errors import ObjectsAway
from worker.storage.bucket_images import BucketImages

if TYPE_CHECKING:
    from worker.storage.inventory import Inventory

_MAX_MANIFEST_BYTES = 1 << 16
_AT_ONCE = 4


@dataclass(frozen=True)
class Restored:
    """``aside``: where the database went that was there before."""

    pictures: int
    aside: Path | None


@dataclass(frozen=True)
class Drilled:
    """What a backup gave back when it was tried. ``elsewhere``: pictures that its rows name and
    that are no part of it; ``found`` of them are where the cell's pictures lie now."""

    tables: dict[str, int]
    pictures: int
    missing: int
    elsewhere: int
    found: int
    fits: bool
    """Whether the secret is the one of the stored keys."""


@dataclass(frozen=True)
class _Unpacked:
    """A whole archive in a folder, found undamaged. Names of pictures as ``ImageStore`` has
    them; ``missing``: those whose rows must not come back."""

    origin: Path
    folder: Path
    rows: dict[str, int]
    pictures: list[str]
    missing: list[str] = field(default_factory=list)
    has_pictures: bool = False

    @property
    def dump(self) -> Path:
        return self.folder / DUMP

    @property
    def database(self) -> Path:
        return self.folder / DATABASE

    @property
    def secret(self) -> Path:
        return self.folder / SECRET

    def picture(self, name: str) -> Path:
        return self.folder / IMAGES / name

    @property
    def missing_ids(self) -> list[str]:
        return [PurePosixPath(name).stem for name in self.missing]


def restore(cell: Cell, path: Path, file: IO[bytes] | None = None) -> Restored:
    """Put back what ``path`` holds; the cell must be down. Present database and secret go aside.

    ``file``: it, opened by somebody who may read it.
    """
    if processes.members(cell.layout.processes):
        raise CellError("the cell runs: end it first with zimage down")
    cell.layout.create()
    with _unpacked(cell, path, file) as found:
        _require_same_kind(cell, found)
        _put_pictures(cell, found)
        aside = _put_database(cell, found)
        _put_cluster(cell.layout, found)
        return Restored(len(found.pictures), aside)


def drill(
    cell: Cell, path: Path, file: IO[bytes] | None = None, scratch: Server | None = None
) -> Drilled:
    """Put back what ``path`` holds into a folder and a database that go again, and see whether
    all that it names is there. The cell may run, and nothing of it is touched.

    ``scratch``: an empty database to use for it; else one is made beside the cell's own.
    """
    cell.layout.create()
    with _unpacked(cell, path, file) as found, _tried(cell, found, scratch) as connection:
        from worker.storage import inventory

        held = inventory.take(connection)
        _require_rows(found, held)
        elsewhere = held.pictures - set(found.pictures)
        if found.has_pictures and elsewhere:
            raise CellError(
                f"{path}: its rows name {len(elsewhere):,} pictures that it does not hold, such as "
                f"{min(elsewhere)}"
            )
        return Drilled(
            held.tables,
            len(found.pictures),
            len(found.missing),
            len(elsewhere),
            _found_now(cell, elsewhere),
            _fits(connection, held, found),
        )


# Out of the archive


@contextmanager
def _unpacked(cell: Cell, path: Path, file: IO[bytes] | None) -> Iterator[_Unpacked]:
    with archives.scratch(cell) as folder:
        try:
            with tarfile.open(None if file else path, fileobj=file) as archive:
                said = _manifest(archive, path)
                # As PEP 706 says for a Python before 3.11.4, such as Debian 12's, without filters.
                archive.extraction_filter = getattr(
                    tarfile, "data_filter", lambda member, _: member
                )
                archive.extractall(folder, _checked(archive, path))
            found = _whole(path, folder, said)
        except (OSError, tarfile.TarError, EOFError) as error:
            raise CellError(
                f"{path} cannot be restored: {error}; database and keys are as before"
            ) from error
        yield found


def _manifest(archive: tarfile.TarFile, path: Path) -> dict[str, Any]:
    """What the archive's first member says; ``CellError`` where it is none of ours."""
    first = archive.next()
    ours = first is not None and first.name == archives.MANIFEST and first.isfile()
    if first is None or not ours or first.size > _MAX_MANIFEST_BYTES:
        raise CellError(
            f"{path} is no backup of a cell, or one of before they had manifests; nothing was "
            "changed. Of such a one put zimage.db and key-secret into cell.var_dir yourself"
        )
    file = archive.extractfile(first)
    assert file is not None
    try:
        said = json.loads(file.read())
        what, version = said["what"], int(said["version"])
        known = {
            "sha256": dict(said["sha256"]),
            "rows": dict(said.get("rows") or {}),
            "images": bool(said.get("images")),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise CellError(f"{path} has a damaged manifest ({error}); nothing was changed") from None
    if what != archives.MAGIC:
        raise CellError(f"{path} is no backup of a cell; nothing was changed")
    if version > archives.VERSION:
        raise CellError(f"{path} is of a newer kit; restore it with that one. Nothing was changed")
    return known


def _checked(archive: tarfile.TarFile, path: Path) -> list[tarfile.TarInfo]:
    members = archive.getmembers()
    for member in members:
        if not member.isfile() or archives.MEMBER.fullmatch(member.name) is None:
            raise CellError(f"{path} has {member.name!r}, which no backup has; nothing was changed")
        member.uid, member.gid, member.mode = os.getuid(), os.getgid(), 0o600
        member.uname = member.gname = ""
    return members


def _whole(path: Path, folder: Path, said: dict[str, Any]) -> _Unpacked:
    """``CellError`` where something of it is damaged or not there."""
    if not (folder / DATABASE).exists() and not (folder / DUMP).exists():
        raise CellError(f"{path} has no {DATABASE}: it is no backup of a cell")
    digests = {str(name): str(digest) for name, digest in said["sha256"].items()}
    has_pictures = (folder / DIGESTS).exists()
    if said["images"] and not (folder / MISSING).exists():
        raise CellError(f"the end of {path} is missing; nothing was changed")
    if has_pictures:
        digests |= _digests(folder / DIGESTS, path)
    for name, digest in digests.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            raise CellError(f"{name} in {path} is damaged; nothing was changed")
    if (folder / DATABASE).exists():
        archives.require_sound(folder / DATABASE, path)
    found = sorted((folder / IMAGES).glob("*/*"))
    names = [f"{file.parent.name}/{file.name}" for file in found]
    missing = (folder / MISSING).read_text().split() if (folder / MISSING).exists() else []
    return _Unpacked(path, folder, said["rows"], names, missing, has_pictures)


def _digests(listed: Path, path: Path) -> dict[str, str]:
    """Of the pictures; ``CellError`` where the list is none."""
    lines = [line.split("  ", 1) for line in listed.read_text(encoding="utf-8").splitlines()]
    found = {line[-1]: line[0] for line in lines}
    if any(len(line) != 2 or archives.MEMBER.fullmatch(line[1]) is None for line in lines):
        raise CellError(f"{DIGESTS} in {path} is damaged; nothing was changed")
    return found


# Back into the cell


def _require_same_kind(cell: Cell, found: _Unpacked) -> None:
    if found.dump.exists() and not cell.layout.postgres_url:
        raise CellError(
            f"{found.origin} is of a database in PostgreSQL: name one in database.url, then restore"
        )
    if found.database.exists() and cell.layout.postgres_url:
        raise CellError(
            f"{found.origin} is of an SQLite file: empty database.url, restore, "
            "then zimage database move takes it into PostgreSQL"
        )


def _put_pictures(cell: Cell, found: _Unpacked) -> None:
    kept = archives.kept_by(cell)
    if not isinstance(kept, BucketImages):
        for name in found.pictures:
            target = cell.layout.images_dir / name
            target.parent.mkdir(mode=0o700, exist_ok=True)
            _move(found.picture(name), target)
        return
    try:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="restore") as threads:
            list(threads.map(lambda name: _put(kept, name, found.picture(name)), found.pictures))
    except ObjectsAway as error:
        raise CellError(
            f"{objects_of(cell.config).url}: {error.why}; database and keys are as before, and the "
            "same command again goes on"
        ) from None
    kept.spool.forget_deleted(found.pictures)


def _put(kept: BucketImages, name: str, picture: Path) -> None:
    """Pictures never change: what is there already must be the same."""
    data = picture.read_bytes()
    if not kept.bucket.put(name, data) and kept.bucket.get(name) != data:
        raise CellError(f"the bucket has another {name}; database and keys are as before")


def _put_database(cell: Cell, found: _Unpacked) -> Path | None:
    """All of it or nothing; where the database went that was there before."""
    at = time.strftime("%Y%m%dT%H%M%S")
    layout = cell.layout
    if found.dump.exists():
        aside = _put_dump(cell, found, at)
        fresh = {}
    else:
        _forget(found.database, found.missing_ids)
        aside = None
        fresh = {layout.database: found.database}
    if found.secret.exists():
        fresh[layout.key_secret] = found.secret
    return _exchange(layout, fresh, at) or aside


def _put_dump(cell: Cell, found: _Unpacked, at: str) -> Path | None:
    server = archives.server_of(cell)
    others = store.run(cell, store.postgres.others)
    if others:
        raise CellError(
            f"{others} connections of zimage use {server.name}: end the cells of all hosts first"
        )
    aside = None
    if server.tables():
        aside = cell.layout.var_dir / f"{DUMP}.before-{at}"
        server.save(aside)
    server.replace_by(found.dump, found.missing_ids)
    return aside


def _forget(database: Path, ids: list[str]) -> None:
    """Rows of pictures that are not there."""
    if not ids:
        return
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.executemany("DELETE FROM images WHERE id = ?", [(id,) for id in ids])


def _exchange(layout: Layout, sources: dict[Path, Path], at: str) -> Path | None:
    """Put files into their places; where the database went that was there before.

    A secret that differs goes aside, too: without it no key of that database fits. All that may
    fail for want of room comes first; in the end only names change."""
    fresh = {target: target.with_name(f".{target.name}.restored") for target in sources}
    try:
        for target, source in sources.items():
            _move(source, fresh[target])
        secret = layout.key_secret
        if secret in fresh and _differ(fresh[secret], secret):
            secret.replace(_aside(secret, at))
        aside = _set_aside(layout.database, at) if layout.database in fresh else None
        for target, ready in fresh.items():
            ready.replace(target)
    finally:
        for left in fresh.values():
            left.unlink(missing_ok=True)
    return aside


def _put_cluster(layout: Layout, found: _Unpacked) -> None:
    """Only what is lost: an older list of revoked certificates would let them in again."""
    for source in sorted((found.folder / archives.CLUSTER).glob("*")):
        target = layout.cluster_dir / source.name
        if not target.exists():
            target.parent.mkdir(mode=0o700, exist_ok=True)
            _move(source, target)


def _set_aside(database: Path, at: str) -> Path | None:
    """Rename the present database, its log as well: what is in there is part of it."""
    aside = _aside(database, at)
    for suffix in ("-wal", "-shm", ""):
        part = Path(f"{database}{suffix}")
        if part.exists():
            part.replace(f"{aside}{suffix}")
    return aside if aside.exists() else None


def _aside(path: Path, at: str) -> Path:
    return path.with_name(f"{path.name}.before-{at}")


def _differ(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() != other.read_bytes()


def _move(source: Path, target: Path) -> None:
    shutil.move(source, target)
    target.chmod(0o600)


# As a trial


@contextmanager
def _tried(cell: Cell, found: _Unpacked, scratch: Server | None) -> Iterator[Any]:
    """A connection to the database that the archive becomes."""
    import sqlalchemy as sa

    from worker.storage.database import create_engine, sqlite_url

    if found.database.exists():
        _forget(found.database, found.missing_ids)
        with _connected(sa.create_engine(sqlite_url(found.database))) as connection:
            yield connection
        return
    if scratch is None and not cell.layout.postgres_url:
        raise CellError(
            f"{found.origin} is of a database in PostgreSQL: name an empty one with --scratch"
        )
    with scratch.emptied() if scratch else archives.server_of(cell).scratch() as server:
        server.replace_by(found.dump, found.missing_ids)
        with _connected(create_engine(server.url, 600.0)) as connection:
            yield connection


@contextmanager
def _connected(engine: Any) -> Iterator[Any]:
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _require_rows(found: _Unpacked, held: "Inventory") -> None:
    for table, rows in found.rows.items():
        have = held.tables.get(table)
        gone = len(found.missing) if table in ("images", "image_numbers") else 0
        if have is None or not rows - gone <= have <= rows:
            raise CellError(
                f"{found.origin}: table {table} came back with {have or 0:,} of {rows:,} rows"
            )


def _found_now(cell: Cell, names: set[str] | frozenset[str]) -> int:
    if not names:
        return 0
    try:
        there = {file.name for file in archives.kept_by(cell).files()}
    except ObjectsAway as error:
        raise CellError(f"{cell.config.objects.url}: {error.why}") from None
    return len(names & there)


def _fits(connection: Any, held: "Inventory", found: _Unpacked) -> bool:
    if "keys" not in held.tables:
        return True
    secret = found.secret.read_bytes() if found.secret.exists() else None
    try:
        store.keys.require_secret(connection, secret)
    except store.keys.SecretLost:
        return False
    return True
