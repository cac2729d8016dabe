"""``zimage database move`` from the shell, into a real server: killed at every table it goes on."""

import asyncio
import getpass
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests import command_line
from tests.deploy.processes import wait_until
from tests.postgres import Server
from tests.worker.databases import prepare
from tests.worker.storage.test_database_move import as_moved, contents, fill
from worker.coordination.quota import Quotas
from worker.storage import key_limits
from worker.storage.database import create_engine, sqlite_url
from worker.storage.keys import Key
from worker.storage.migrations import migrate

ROWS = 20
_WAITS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = 'zimage_shell' AND wait_event_type = 'Lock' AND query LIKE 'LOCK TABLE%%'
"""


class Shell:
    """A cell that is down, with rows in every table of its file."""

    def __init__(self, folder: Path, server: Server, url: str) -> None:
        self.path, self.server, self.url = folder / "cluster.toml", server, url
        self.database = folder / "var" / "zimage.db"
        self.file = sqlite_url(self.database)
        prepare(self.file)
        fill(self.file, ROWS)
        self.write("")

    def write(self, more: str) -> None:
        user = getpass.getuser()
        cell = f'[cell]\nvar_dir = "{self.database.parent}"\nuser = "{user}"\n'
        self.path.write_text(cell + more)

    def move(self, *options: str) -> subprocess.CompletedProcess[str]:
        asked = ("database", "move", *options, "--config", str(self.path))
        return command_line.zimage(asked, os.environ)

    def moved_rows(self, tables: list[str]) -> dict[str, int]:
        """How many of each table are on the server."""
        with self.server.connect("zimage_shell") as admin:
            counted = {name: admin.execute(f"SELECT count(*) FROM {name}") for name in tables}
            return {name: int(one.fetchone()[0]) for name, one in counted.items()}  # type: ignore[index]

    def killed_at(self, table: str) -> None:
        """Begin, and SIGKILL when it comes to ``table``."""
        words = ("database", "move", self.url, "--config", str(self.path))
        with psycopg.connect(host=str(self.server.folder), user="zimage", dbname="zimage_shell",
                             application_name="test") as other:  # fmt: skip
            other.execute(f"LOCK TABLE {table} IN SHARE MODE")
            with command_line.started(words, os.environ) as command:
                with self.server.connect("zimage_shell") as admin:
                    wait_until(
                        lambda: admin.execute(_WAITS).fetchone() == (1,) or not command.runs, table
                    )
                assert command.runs, command.said() + command.complained()
                command.send_signal(signal.SIGKILL)
        with self.server.connect("zimage_shell") as admin:
            mine = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'zimage'"
            wait_until(lambda: admin.execute(mine).fetchone() == (0,), "its connection ended")


@pytest.fixture
def shell(tmp_path: Path, postgres: Server) -> Iterator[Shell]:
    with postgres.database("zimage_shell") as url:
        yield Shell(tmp_path, postgres, url)


def states(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    found = re.findall(r"^  (\w+) +[\d,]+  [0-9a-f]{12}  (.+)$", done.stdout, re.M)
    return dict(found)


def test_rows_move_and_the_lines_to_set_are_told(shell: Shell) -> None:
    done = shell.move(shell.url)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert set(states(done).values()) == {"moved"}
    assert "every copy has the digest of its table" in done.stdout
    assert f'[database]\nurl = "{shell.url}"\n' in done.stdout
    assert contents(shell.url, "keys") == as_moved(contents(shell.file, "keys"))
    shell.write(f'[database]\nurl = "{shell.url}"\n')
    again = shell.move()
    assert again.returncode == 0, again.stderr
    assert set(states(again).values()) == {"there already"}
    assert "  next     zimage up\n" in again.stdout


def test_whoever_is_killed_at_any_table_goes_on_with_it(shell: Shell) -> None:
    migrate(shell.url)  # so that its tables can be locked
    order = list(states(shell.move(shell.url, "--dry-run")))
    assert len(order) > 10
    whole = {name: len(contents(shell.file, name)) for name in order}
    for k, table in enumerate(order):
        shell.killed_at(table)
        found = shell.moved_rows(order)
        assert [found[name] for name in order[:k]] == [whole[name] for name in order[:k]]
        assert all(found[name] <= 1 for name in order[k:])
    last = shell.move(shell.url)
    assert last.returncode == 0, last.stderr
    assert list(states(last).values()) == ["there already"] * (len(order) - 1) + ["moved"]


def test_what_keys_have_drawn_today_stays_counted(shell: Shell) -> None:
    key = Key("r7", "r7", b"", "", images_per_day=5)
    quotas = Quotas(shell.database.parent / "run", shell.database.parent)
    asyncio.run(quotas.hold(key, "request", 0.0, 4))
    assert shell.move(shell.url).returncode == 0
    again = shell.move(shell.url)
    assert set(states(again).values()) == {"there already"}, again.stderr
    engine = create_engine(shell.url, 10.0)
    with engine.connect() as connection:
        assert key_limits.counted(connection, "r7") == 4
    engine.dispose()


def test_a_dry_run_changes_nothing(shell: Shell) -> None:
    done = shell.move(shell.url, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert set(states(done).values()) == {"to be moved"}
    assert "rows would be moved; nothing was changed" in done.stdout
    with shell.server.connect("zimage_shell") as admin:
        asked = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        assert admin.execute(asked).fetchone() == (0,)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "name the database: zimage database move postgresql://"),
        ("postgresql://me:secret@db/zimage", "url: there is a password in it, for all to read"),
        ("postgresql://me@127.0.0.1:9/zimage", "start it, or mend database.url"),
    ],
)
def test_what_cannot_be_moved_to_is_told_and_nothing_is_changed(
    shell: Shell, url: str, told: str
) -> None:
    before = shell.database.read_bytes()
    done = shell.move(*filter(None, [url]))
    assert done.returncode == 1
    assert told in done.stderr
    assert "secret" not in done.stderr
    assert shell.database.read_bytes() == before
