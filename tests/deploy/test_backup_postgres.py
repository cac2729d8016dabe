"""PostgreSQL and the bucket come back as of one moment, and a drill shows it beforehand."""

import getpass
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy import dump
from deploy.backup import backup
from deploy.cell import Cell, CellError
from deploy.config import ROOT, parse
from deploy.dump import Server as Dumped
from deploy.restore import drill, restore
from tests.deploy.processes import wait_until
from tests.object_store import ObjectStore
from tests.postgres import Server
from tests.worker.databases import prepare
from tests.worker.storage.conftest import picture
from tests.worker.storage.test_database_move import contents
from worker.storage import gallery, keys
from worker.storage.bucket_images import BucketImages
from worker.storage.database import create_engine, sqlite_url
from worker.storage.migrations import migrate
from worker.tables import Objects

pytestmark = pytest.mark.xdist_group("s3")

SECRET = b"secret of the tests" * 2
NAME = "zimage_saved"


class Saved:
    """A cell that is down, with a database on the server and a bucket."""

    def __init__(self, folder: Path, server: Server, objects: Objects) -> None:
        data = {
            "cell": {"var_dir": str(folder / "var")},
            "database": {"url": server.url(NAME)},
            "objects": objects.model_dump(),
        }
        folder.mkdir(exist_ok=True)
        (folder / "cluster.toml").touch()
        self.cell = Cell(parse(data), folder / "cluster.toml")
        self.cell.layout.create()
        self.cell.layout.key_secret.write_bytes(SECRET)
        self.url, self.server, self.objects = server.url(NAME), server, objects
        self.kept = BucketImages.of(objects, self.cell.layout.var_dir)
        self.engine = create_engine(self.url, 10.0)

    def write_config(self) -> None:
        """For commands."""
        told = {
            "cell": {"var_dir": str(self.cell.layout.var_dir), "user": getpass.getuser()},
            "database": {"url": self.url},
            "objects": self.objects.model_dump(),
        }
        lines = [
            f"[{table}]\n" + "".join(f"{key} = {value!r}\n" for key, value in values.items())
            for table, values in told.items()
        ]
        self.cell.config_path.write_text("".join(lines))

    def draw(self, name: str) -> None:
        """Put, then row, as workers do."""
        row = picture(name)
        self.kept.save(row.name, name.encode())
        with self.engine.begin() as connection:
            gallery.insert(connection, row)

    def delete(self, name: str) -> None:
        """Row, then object, as workers do."""
        row = picture(name)
        with self.engine.begin() as connection:
            connection.execute(gallery.images.delete().where(gallery.images.c.id == row.id))
        self.kept.delete([row.name])

    def rows(self) -> set[str]:
        with self.engine.connect() as connection:
            return set(gallery.names(connection))

    def add_key(self) -> None:
        made, _ = keys.new_key(SECRET, "ada")
        with self.engine.begin() as connection:
            keys.insert(connection, made, SECRET)

    def lose_all(self) -> None:
        """The database and all objects."""
        self.engine.dispose()
        with self.server.connect() as admin:
            admin.execute(f"DROP DATABASE {NAME} WITH (FORCE)")
            admin.execute(f"CREATE DATABASE {NAME} TEMPLATE template0")
        self.kept.bucket.delete([file.name for file in self.kept.bucket.files()])
        assert self.kept.bucket.files() == []


@pytest.fixture(scope="module")
def empty(postgres: Server) -> Iterator[str]:
    """A migrated database, to be copied."""
    with postgres.database("zimage_saved_empty") as url:
        migrate(url)
        yield "zimage_saved_empty"


@pytest.fixture
def saved(
    tmp_path: Path,
    postgres: Server,
    object_store: ObjectStore,
    empty: str,
    request: pytest.FixtureRequest,
) -> Iterator[Saved]:
    with postgres.database(NAME, empty):
        name = re.sub(r"\W+", "-", request.node.name)[:60]
        objects = object_store.objects(f"saved/{name}")
        made = Saved(tmp_path / "a", postgres, objects)
        yield made
        made.engine.dispose()


def drawing(saved: Saved, over: threading.Event, drawn: list[str], deleted: list[str]) -> Any:
    """Draw, and delete some of what was drawn, until it is over."""

    def work() -> None:
        chance = random.Random(7)
        for k in itertools.count():
            if over.is_set():
                return
            saved.draw(f"load{k}")
            drawn.append(f"load{k}")
            if k % 3 == 2:
                name = drawn.pop(chance.randrange(len(drawn)))
                saved.delete(name)
                deleted.append(name)

    return threading.Thread(target=work)


def test_rows_and_pictures_come_back_as_of_one_moment_under_load(
    saved: Saved, tmp_path: Path
) -> None:
    saved.add_key()
    for k in range(20):
        saved.draw(f"early{k}")
    over, drawn, deleted = threading.Event(), list[str](), list[str]()
    load = drawing(saved, over, drawn, deleted)
    load.start()
    try:
        while len(drawn) < 10:
            assert load.is_alive()
        known = list(drawn)
        backup(saved.cell, tmp_path / "cell.tar", images=True)
        gone = set(deleted)
    finally:
        over.set()
        load.join(60)
    stored = {table: contents(saved.url, table) for table in ("keys", "keys_state", "hosts")}
    saved.lose_all()
    done = restore(saved.cell, tmp_path / "cell.tar")
    rows = saved.rows()
    objects = {file.name for file in saved.kept.bucket.files()}
    assert rows <= objects  # no row names what is not there
    assert {picture(f"early{k}").name for k in range(20)} <= rows
    assert {picture(name).name for name in known if name not in gone} <= rows
    assert all(
        saved.kept.bucket.get(name) == name.split("img_")[1].removesuffix(".png").encode()
        for name in objects
    )
    assert done.aside is None  # nothing was there
    assert {table: contents(saved.url, table) for table in stored} == stored


def test_a_picture_deleted_meanwhile_takes_its_row_along(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved.draw("stays")
    saved.draw("goes")
    plain = Dumped.save

    def save(server: Dumped, path: Path, snapshot: str = "") -> None:
        plain(server, path, snapshot)
        saved.delete("goes")

    monkeypatch.setattr(Dumped, "save", save)
    done = backup(saved.cell, tmp_path / "cell.tar", images=True)
    monkeypatch.undo()
    assert (done.pictures, done.deleted, done.lost) == (1, 1, [])
    tried = drill(saved.cell, tmp_path / "cell.tar")
    assert (tried.pictures, tried.missing, tried.tables["images"]) == (1, 1, 1)
    saved.lose_all()
    restore(saved.cell, tmp_path / "cell.tar")
    assert saved.rows() == {picture("stays").name}


def test_a_picture_that_is_nowhere_is_told(saved: Saved, tmp_path: Path) -> None:
    saved.draw("lost")
    saved.kept.bucket.delete([picture("lost").name])
    done = backup(saved.cell, tmp_path / "cell.tar", images=True)
    assert (done.pictures, done.deleted, done.lost) == (0, 0, [picture("lost").name])


def test_a_drill_shows_it_and_touches_nothing(saved: Saved, tmp_path: Path) -> None:
    saved.add_key()
    saved.draw("one")
    backup(saved.cell, tmp_path / "cell.tar", images=True)
    saved.draw("two")
    before = {path: path.stat().st_mtime for path in saved.cell.layout.var_dir.rglob("*")}
    done = drill(saved.cell, tmp_path / "cell.tar")
    assert (done.pictures, done.elsewhere, done.fits) == (1, 0, True)
    assert (done.tables["keys"], done.tables["images"]) == (1, 1)
    assert saved.rows() == {picture("one").name, picture("two").name}
    after = {path: path.stat().st_mtime for path in saved.cell.layout.var_dir.rglob("*")}
    assert after == before
    with saved.server.connect() as admin:
        asked = "SELECT datname FROM pg_database WHERE datname LIKE '%drill%'"
        assert admin.execute(asked).fetchall() == []


def test_a_drill_may_use_an_empty_database_elsewhere(saved: Saved, tmp_path: Path) -> None:
    saved.draw("one")
    backup(saved.cell, tmp_path / "cell.tar", images=True)
    with saved.server.database("zimage_elsewhere") as url:
        elsewhere = Dumped(url, "elsewhere")
        assert drill(saved.cell, tmp_path / "cell.tar", scratch=elsewhere).tables["images"] == 1
        assert elsewhere.tables() == []
        with saved.server.connect("zimage_elsewhere") as admin:
            admin.execute("CREATE TABLE theirs (id int)")
        with pytest.raises(CellError, match="elsewhere has tables: name an empty database"):
            drill(saved.cell, tmp_path / "cell.tar", scratch=elsewhere)
        assert len(elsewhere.tables()) == 1


def test_a_drill_without_pictures_says_where_they_are(saved: Saved, tmp_path: Path) -> None:
    saved.draw("there")
    saved.draw("lost")
    backup(saved.cell, tmp_path / "cell.tar", images=False)
    saved.kept.bucket.delete([picture("lost").name])
    done = drill(saved.cell, tmp_path / "cell.tar")
    assert (done.pictures, done.elsewhere, done.found) == (0, 2, 1)


def test_a_secret_that_does_not_fit_is_found_by_the_drill(saved: Saved, tmp_path: Path) -> None:
    saved.add_key()
    saved.cell.layout.key_secret.write_bytes(b"another")
    backup(saved.cell, tmp_path / "cell.tar", images=False)
    assert not drill(saved.cell, tmp_path / "cell.tar").fits


def changed(archive: Path, name: str, data: bytes | None) -> None:
    """Another content for one member of an archive, or none of it."""
    fresh = archive.with_suffix(".changed")
    with tarfile.open(archive) as old, tarfile.open(fresh, "w") as new:
        for member in old.getmembers():
            content = old.extractfile(member)
            assert content is not None
            if member.name == name and data is None:
                continue
            new.addfile(member, content)
    if data is not None:
        whole = fresh.read_bytes()
        assert whole.count(data) >= 1
        fresh.write_bytes(whole.replace(data, data[::-1]))
    fresh.replace(archive)


@pytest.mark.parametrize("data", [b"a picture of its own", None])
def test_a_picture_that_is_damaged_or_gone_fails_drill_and_restore(
    saved: Saved, tmp_path: Path, data: bytes | None
) -> None:
    row = picture("one")
    saved.kept.save(row.name, b"a picture of its own")
    with saved.engine.begin() as connection:
        gallery.insert(connection, row)
    backup(saved.cell, tmp_path / "cell.tar", images=True)
    changed(tmp_path / "cell.tar", f"images/{row.name}", data)
    saved.engine.dispose()
    for verb in (drill, restore):
        with pytest.raises(CellError, match=rf"images/{row.name} in .* is damaged"):
            verb(saved.cell, tmp_path / "cell.tar")


def test_what_was_there_goes_aside_and_can_be_read(saved: Saved, tmp_path: Path) -> None:
    saved.draw("then")
    backup(saved.cell, tmp_path / "cell.tar", images=True)
    saved.draw("now")
    saved.engine.dispose()
    done = restore(saved.cell, tmp_path / "cell.tar")
    assert saved.rows() == {picture("then").name}
    assert done.aside is not None
    assert done.aside.stat().st_mode & 0o077 == 0
    saved.engine.dispose()
    Dumped(saved.url, "it").replace_by(done.aside)
    assert saved.rows() == {picture("then").name, picture("now").name}
    migrate(saved.url)  # what up does with what was put back
    with saved.server.connect(NAME) as admin:
        asked = "SELECT to_regclass('ix_images_words') IS NOT NULL"
        assert admin.execute(asked).fetchone() == (True,)


def test_tables_of_a_newer_version_do_not_stay(saved: Saved, tmp_path: Path) -> None:
    backup(saved.cell, tmp_path / "cell.tar", images=False)
    with saved.server.connect(NAME) as admin:
        admin.execute("CREATE TABLE of_later (id int)")
        restore(saved.cell, tmp_path / "cell.tar")
        asked = "SELECT to_regclass('of_later') IS NULL"
        assert admin.execute(asked).fetchone() == (True,)


def test_a_restore_that_fails_leaves_the_database_as_it_was(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dump, "_LOCK_S", 1)
    saved.draw("then")
    backup(saved.cell, tmp_path / "cell.tar", images=True)
    saved.draw("now")
    saved.engine.dispose()
    with saved.server.connect(NAME) as other, other.transaction():
        other.execute("LOCK TABLE usage_days IN ACCESS SHARE MODE")
        with pytest.raises(CellError, match=r"psql with .*: .*lock timeout"):
            restore(saved.cell, tmp_path / "cell.tar")
    assert saved.rows() == {picture("then").name, picture("now").name}


def test_whoever_is_killed_amid_a_restore_leaves_the_database_as_it_was(
    saved: Saved, tmp_path: Path
) -> None:
    """Also between two statements, where the end of psql's input is no error."""
    saved.draw("then")
    backup(saved.cell, tmp_path / "cell.tar", images=False)
    saved.draw("now")
    before = saved.rows()
    saved.engine.dispose()
    saved.write_config()
    plain, slow = dump._program("pg_restore", 15), tmp_path / "pg_restore"
    begins = f'{plain} "$@" | sed "/^ALTER TABLE/,$ d"; echo $$ > {tmp_path}/pid; exec sleep 60'
    slow.write_text(f'#!/bin/sh\ncase "$*" in *--list*) exec {plain} "$@" ;; esac\n{begins}\n')
    slow.chmod(0o755)
    code = (
        "import runpy, sys; from pathlib import Path; from deploy import dump\n"
        "plain = dump._program\n"
        f"slow = Path({str(slow)!r})\n"
        "dump._program = lambda name, at: slow if name == 'pg_restore' else plain(name, at)\n"
        "runpy.run_module('deploy.cli.app', run_name='__main__')"
    )
    words = ["restore", str(tmp_path / "cell.tar"), "--config", str(saved.cell.config_path)]
    asked = "SELECT state FROM pg_stat_activity WHERE application_name = 'zimage'"
    with saved.server.connect(NAME) as admin:
        with subprocess.Popen([sys.executable, "-c", code, *words], cwd=ROOT) as process:
            wait_until(lambda: (tmp_path / "pid").exists(), "pg_restore says no more")
            idle = [("idle in transaction",)]
            wait_until(lambda: admin.execute(asked).fetchall() == idle, "psql has done it all")
            process.kill()
        wait_until(lambda: admin.execute(asked).fetchall() == [], "psql has ended")
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert saved.rows() == before


def test_a_cell_of_another_host_is_in_the_way(saved: Saved, tmp_path: Path) -> None:
    backup(saved.cell, tmp_path / "cell.tar", images=False)
    with (
        saved.engine.connect(),
        pytest.raises(CellError, match=r"1 connections of zimage use .*end the cells of all hosts"),
    ):
        restore(saved.cell, tmp_path / "cell.tar")


@pytest.mark.parametrize(
    ("version", "told"),
    [
        (None, "there is none of pg_dump here: apt-get install postgresql-client-"),
        (9, "there is only that of version 9 of pg_dump here: apt-get install postgresql-client-"),
    ],
)
def test_a_client_that_is_too_old_is_told_with_the_remedy(
    saved: Saved,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: int | None,
    told: str,
) -> None:
    program = tmp_path / "pg_dump"
    if version:
        program.write_text(f'#!/bin/sh\necho "pg_dump (PostgreSQL) {version}.3"\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(dump, "_DEBIAN", "/nowhere/*/bin")
    with pytest.raises(CellError, match=told):
        backup(saved.cell, tmp_path / "cell.tar", images=False)
    assert not (tmp_path / "cell.tar").exists()


def test_a_newer_client_says_nothing_that_an_older_server_does_not_know(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved.draw("then")
    saved.engine.dispose()
    backup(saved.cell, tmp_path / "cell.tar", images=False)
    plain = dump._program("pg_restore", 15)
    newer = tmp_path / "pg_restore"
    says = r'printf "\nSET transaction_timeout = 0;\n"'
    newer.write_text(f'#!/bin/sh\ncase "$*" in *--list*) ;; *) {says} ;; esac\nexec {plain} "$@"\n')
    newer.chmod(0o755)
    programs = dump._program
    monkeypatch.setattr(
        dump,
        "_program",
        lambda name, version: newer if name == "pg_restore" else programs(name, version),
    )
    restore(saved.cell, tmp_path / "cell.tar")
    assert saved.rows() == {picture("then").name}


def test_the_kinds_are_not_mixed_up(saved: Saved, tmp_path: Path) -> None:
    backup(saved.cell, tmp_path / "server.tar", images=False)
    plain = Cell(parse({"cell": {"var_dir": str(tmp_path / "b")}}), saved.cell.config_path)
    plain.layout.create()
    prepare(sqlite_url(plain.layout.database))
    backup(plain, tmp_path / "file.tar", images=False)
    with pytest.raises(CellError, match=r"empty database.url, restore, then zimage database move"):
        restore(saved.cell, tmp_path / "file.tar")
    with pytest.raises(CellError, match=r"of a database in PostgreSQL: name one in database.url"):
        restore(plain, tmp_path / "server.tar")
    with pytest.raises(CellError, match="name an empty one with --scratch"):
        drill(plain, tmp_path / "server.tar")


def test_the_password_stands_in_no_command(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    file.write_text("of the drill\n")
    file.chmod(0o600)
    with postgres.guarded("dumper", "of the drill") as url:
        server = Dumped(f"{url}&password_file={file}", "it")
        with postgres.connect("dumper") as admin:
            admin.execute("CREATE TABLE t (n int)")
            admin.execute("ALTER TABLE t OWNER TO dumper")
        seen: list[str] = []
        plain = Dumped._output

        def noted(self: Dumped, command: list[str]) -> Any:
            seen.extend(command)
            return plain(self, command)

        monkeypatch.setattr(Dumped, "_output", noted)
        server.save(tmp_path / "d")
        server.replace_by(tmp_path / "d")
        assert server.tables() == ["public.t"]
        assert seen
        assert "of the drill" not in " ".join(seen)
