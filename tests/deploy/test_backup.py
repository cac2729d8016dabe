"""A backup is whole while others write, and nothing else than a backup is put back."""

import io
import os
import sqlite3
import tarfile
import threading
from contextlib import closing
from pathlib import Path

import pytest

from deploy.backup import backup, restore
from deploy.cell import Cell, CellError
from deploy.config import parse


def cell(folder: Path) -> Cell:
    """A cell that is down, with a database of one row, a secret and a picture."""
    config = folder / "cluster.toml"
    folder.mkdir(exist_ok=True)
    config.write_text("# of then\n")
    here = Cell(parse({"cell": {"var_dir": str(folder / "var")}}), config)
    here.layout.create()
    return here


def filled(folder: Path, value: str = "then") -> Cell:
    here = cell(folder)
    write(here.layout.database, value)
    here.layout.key_secret.write_text(f"secret of {value}")
    picture = here.layout.images_dir / "2026-01-01" / f"{'0' * 32}-0.png"
    picture.parent.mkdir()
    picture.write_text(f"picture of {value}")
    for other in (f"{'0' * 32}-0.thumb.webp", f".{'0' * 32}-1.png.4711"):
        (picture.parent / other).touch()
    return here


def write(database: Path, value: str) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS t (value TEXT)")
        connection.execute("INSERT INTO t VALUES (?)", (value,))
        connection.commit()


def values(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as connection:
        return [value for (value,) in connection.execute("SELECT value FROM t")]


@pytest.mark.parametrize("name", ["cell.tar", "cell.tar.gz"])
def test_backup_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    done = backup(filled(tmp_path / "a"), file, images=True)
    assert (done.pictures, file.stat().st_mode & 0o777) == (1, 0o600)
    other = filled(tmp_path / "b", "now")
    back = restore(other, file)
    assert values(other.layout.database) == ["then"]
    assert other.layout.key_secret.read_text() == "secret of then"
    assert (other.layout.images_dir / "2026-01-01" / f"{'0' * 32}-0.png").read_text() == (
        "picture of then"
    )
    assert other.layout.database.stat().st_mode & 0o777 == 0o600
    assert back.aside is not None
    assert values(back.aside) == ["now"]
    assert other.config_path.read_text() == "# of then\n"


def test_pictures_are_left_out_unasked(tmp_path: Path) -> None:
    file = tmp_path / "cell.tar"
    backup(filled(tmp_path / "a"), file, images=False)
    with tarfile.open(file) as archive:
        assert set(archive.getnames()) == {"zimage.db", "key-secret", "cluster.toml"}


def test_backup_is_whole_while_somebody_writes(tmp_path: Path) -> None:
    here = filled(tmp_path / "a")
    over = threading.Event()

    def write_on() -> None:
        with closing(sqlite3.connect(here.layout.database, timeout=30)) as connection:
            while not over.is_set():
                connection.execute("INSERT INTO t VALUES ('one'), ('other')")
                connection.commit()

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        for n in range(5):
            backup(here, tmp_path / f"{n}.tar", images=False)
    finally:
        over.set()
        writer.join(30)
    other = cell(tmp_path / "b")
    restore(other, tmp_path / "4.tar")
    found = values(other.layout.database)
    assert found.count("one") == found.count("other")


def archive_of(path: Path, *members: tuple[str, bytes, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(content) if kind == tarfile.REGTYPE else 0
            info.linkname = "/etc/passwd"
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../../escaped", tarfile.REGTYPE),
        ("/tmp/escaped", tarfile.REGTYPE),
        ("images/../../escaped.png", tarfile.REGTYPE),
        ("zimage.db", tarfile.SYMTYPE),
        ("key-secret", tarfile.LNKTYPE),
        ("images/2026-01-01", tarfile.DIRTYPE),
        ("run.sh", tarfile.REGTYPE),
    ],
)
def test_odd_archive_is_refused_whole(tmp_path: Path, name: str, kind: bytes) -> None:
    here = filled(tmp_path / "a")
    file = archive_of(tmp_path / "odd.tar", (name, kind, b"x"))
    with pytest.raises(CellError, match="which no backup has; nothing was changed"):
        restore(here, file)
    assert values(here.layout.database) == ["then"]


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\0" + bytes(5000)])
def test_damaged_database_is_not_put_back(tmp_path: Path, content: bytes) -> None:
    here = filled(tmp_path / "a")
    file = archive_of(tmp_path / "bad.tar", ("zimage.db", tarfile.REGTYPE, content))
    if content:
        with pytest.raises(CellError, match="damaged"):
            restore(here, file)
        assert values(here.layout.database) == ["then"]


@pytest.mark.parametrize("content", [b"", b"no archive", os.urandom(3000)])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    here = filled(tmp_path / "a")
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(CellError, match=r"nothing was changed|is no backup"):
        restore(here, tmp_path / "x.tar")
    assert values(here.layout.database) == ["then"]


def test_cell_without_a_database_has_nothing_to_back_up(tmp_path: Path) -> None:
    with pytest.raises(CellError, match="no database"):
        backup(cell(tmp_path / "a"), tmp_path / "x.tar", images=False)
    assert not (tmp_path / "x.tar").exists()


def test_backup_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    here = filled(tmp_path / "a")
    with pytest.raises(CellError, match="cannot be written"):
        backup(here, tmp_path / "no such folder" / "x.tar", images=False)
