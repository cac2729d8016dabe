"""A backup is whole while others write, and nothing else than a backup is put back."""

import fcntl
import getpass
import gzip
import io
import os
import pwd
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from deploy.backup import Written, backup
from deploy.cell import Cell, CellError
from deploy.config import ROOT, parse
from deploy.restore import restore
from tests import command_line


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
    assert (done, file.stat().st_mode & 0o777) == (Written(pictures=1), 0o600)
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
        assert archive.getnames() == ["manifest.json", "zimage.db", "key-secret", "cluster.toml"]


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


MANIFEST = b'{"what": "backup of a zimage-cluster cell", "version": 1, "sha256": {}}'


def archive_of(
    path: Path, *members: tuple[str, bytes, bytes], manifest: bytes | None = MANIFEST
) -> Path:
    if manifest is not None:
        members = (("manifest.json", tarfile.REGTYPE, manifest), *members)
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
    with pytest.raises(CellError, match=r"as before|is no backup"):
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


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        (None, "is no backup of a cell"),
        (b"{", "damaged manifest"),
        (b'{"what": "another kit", "version": 1, "sha256": {}}', "is no backup of a cell"),
        (MANIFEST.replace(b": 1", b": 3"), "of a newer kit"),
        (MANIFEST.replace(b"{}", b'{"zimage.db": "00"}'), "zimage.db in .* is damaged"),
        (MANIFEST.replace(b"{}", b'{"key-secret": "00"}'), "key-secret in .* is damaged"),
    ],
)
def test_what_is_not_ours_is_refused(tmp_path: Path, manifest: bytes | None, why: str) -> None:
    here = filled(tmp_path / "a")
    database = tmp_path / "some.db"
    write(database, "theirs")
    member = ("zimage.db", tarfile.REGTYPE, database.read_bytes())
    with pytest.raises(CellError, match=why):
        restore(here, archive_of(tmp_path / "x.tar", member, manifest=manifest))
    assert values(here.layout.database) == ["then"]
    assert here.layout.key_secret.read_text(encoding="utf-8") == "secret of then"


def test_secret_of_before_is_kept_where_it_differs(tmp_path: Path) -> None:
    file = tmp_path / "cell.tar"
    backup(filled(tmp_path / "a"), file, images=False)
    other = filled(tmp_path / "b", "now")
    for _ in range(2):  # the second time there is nothing to keep
        restore(other, file)
    [kept] = other.layout.var_dir.glob("key-secret.before-*")
    assert kept.read_text(encoding="utf-8") == "secret of now"


def test_of_a_cluster_only_what_is_lost_comes_back(tmp_path: Path) -> None:
    here = filled(tmp_path / "a")
    here.layout.cluster_dir.mkdir()
    for name in ("ca.key", "crl.pem"):
        (here.layout.cluster_dir / name).write_text(f"{name} of then")
    backup(here, tmp_path / "cell.tar", images=False)
    other = filled(tmp_path / "b", "now")
    other.layout.cluster_dir.mkdir()
    (other.layout.cluster_dir / "crl.pem").write_text("of now: one more is revoked")
    restore(other, tmp_path / "cell.tar")
    key = other.layout.cluster_dir / "ca.key"
    assert key.read_text(encoding="utf-8") == "ca.key of then"
    assert key.stat().st_mode & 0o777 == 0o600
    revoked = other.layout.cluster_dir / "crl.pem"
    assert revoked.read_text(encoding="utf-8") == "of now: one more is revoked"


def test_what_a_killed_command_left_goes_with_the_next_one(tmp_path: Path) -> None:
    here = filled(tmp_path / "a")
    left, busy, fresh = (here.layout.var_dir / f".backup-{name}" for name in ("a", "b", "c"))
    for folder in (left, busy, fresh):
        folder.mkdir()
        (folder / "key-secret").touch()
    for folder in (left, busy):
        os.utime(folder, (0, 0))
    fd = os.open(busy, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    backup(here, tmp_path / "cell.tar", images=False)
    os.close(fd)
    assert set(here.layout.var_dir.glob(".backup-*")) == {busy, fresh}


@pytest.mark.parametrize("last", ["images.sha256", f"images/2026-01-01/{'0' * 32}-0.png"])
def test_an_archive_whose_end_is_missing_is_refused(tmp_path: Path, last: str) -> None:
    here, file = filled(tmp_path / "a"), tmp_path / "cell.tar"
    backup(here, file, images=True)
    with tarfile.open(file) as archive:
        end = archive.getmember(last).offset
    file.write_bytes(file.read_bytes()[:end])  # between two members, where no tar notices it
    write(here.layout.database, "now")
    with pytest.raises(CellError, match=r"the end of .*cell.tar is missing; nothing was changed"):
        restore(here, file)
    assert values(here.layout.database) == ["then", "now"]


def test_link_in_the_place_of_a_backup_is_not_followed(tmp_path: Path) -> None:
    here = filled(tmp_path / "a")
    victim = tmp_path / "victim"
    victim.write_text("keep")
    for name in ("cell.tar", ".cell.tar.new"):
        (tmp_path / name).symlink_to(victim)
    backup(here, tmp_path / "cell.tar", images=False)
    assert victim.read_text(encoding="utf-8") == "keep"
    assert not (tmp_path / "cell.tar").is_symlink()


def test_folder_where_all_may_write_gets_no_backup(tmp_path: Path) -> None:
    here, shared = filled(tmp_path / "a"), tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(CellError, match="others may change what is in"):
        backup(here, shared / "cell.tar", images=False)
    assert list(shared.iterdir()) == []
    shared.chmod(0o1777)  # as /tmp: everybody's files are his own
    backup(here, shared / "cell.tar", images=False)
    assert (shared / "cell.tar").stat().st_mode & 0o777 == 0o600


def test_the_command_writes_the_archive_to_its_end(tmp_path: Path) -> None:
    here = filled(tmp_path / "a")
    here.config_path.write_text(
        f'[cell]\nvar_dir = "{here.layout.var_dir}"\nuser = "{getpass.getuser()}"\n'
    )
    file = tmp_path / "cell.tar.gz"
    options = ("--config", str(here.config_path))
    done = command_line.zimage(("backup", "--images", str(file), *options), os.environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert gzip.decompress(file.read_bytes()).endswith(bytes(1024))
    tried = command_line.zimage(("restore", "--drill", str(file), *options), os.environ)
    assert "can be restored: its rows came back, 1 pictures have their SHA-256" in tried.stdout


@pytest.fixture
def open_path() -> Iterator[Path]:
    """Where others may look: each start of pytest closes ``tmp_path`` to them."""
    with tempfile.TemporaryDirectory(prefix="zb-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may write for others")
def test_root_writes_and_reads_where_the_user_of_the_cell_may_not(open_path: Path) -> None:
    here = filled(open_path / "a")
    nobody = pwd.getpwnam("nobody")
    for path in (here.layout.var_dir, *here.layout.var_dir.rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    config = open_path / "a" / "cluster.toml"
    config.write_text(f'[cell]\nvar_dir = "{here.layout.var_dir}"\nuser = "nobody"\n')
    private = open_path / "root's"
    private.mkdir(mode=0o700)

    def zimage(*words: str) -> None:
        command = [sys.executable, "-m", "deploy.cli.app", *words, "--config", str(config)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    zimage("backup", str(private / "cell.tar"))
    status = (private / "cell.tar").stat()
    assert (status.st_uid, status.st_mode & 0o777) == (0, 0o600)
    zimage("restore", str(private / "cell.tar"))
    assert here.layout.database.stat().st_uid == nobody.pw_uid
