"""The revisions and the tables of the code are the same."""

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from tests.postgres import Server
from tests.worker import databases
from worker.storage import (
    certificates,
    gallery,
    hosts,
    job_steps,
    jobs,
    key_limits,
    keys,
    search,
    strikes,
    uploads,
    usage,
)
from worker.storage.database import create_engine
from worker.storage.hosts import HostReport
from worker.storage.migrations import SCRIPTS, OldHosts, migrate, minimum_version
from worker.storage.schema import metadata

TABLES = (
    certificates.certificates,
    certificates.cluster_documents,
    certificates.invites,
    hosts.hosts,
    gallery.images,
    jobs.jobs,
    jobs.items,
    jobs.prompts,
    jobs.holds,
    job_steps.job_steps,
    keys.ended_sessions,
    keys.keys,
    keys.keys_state,
    key_limits.days,
    key_limits.requests,
    key_limits.slots,
    search.numbers,
    strikes.strikes,
    uploads.uploads,
    usage.entries,
    usage.days,
)


def _is_ours(name: str | None, kind: str, _: object) -> bool:
    """Not what only one kind of database has, for searches."""
    return not (name or "").startswith(("images_search", "images_terms", "ix_images_words"))


OPTIONS = {"compare_type": True, "include_name": _is_ours}


def test_revisions_make_the_tables_that_the_code_uses(url: str) -> None:
    assert {table.name for table in TABLES} == set(metadata.tables)
    engine = create_engine(url, 1.0)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=OPTIONS)
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def _steps() -> list[tuple[str, str]]:
    """Each revision that only adds, as it does not say otherwise, and the one before it."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    found = list(ScriptDirectory.from_config(config).walk_revisions())[::-1]
    pairs = itertools.pairwise(found)
    return [(before.revision, s.revision) for before, s in pairs if not minimum_version(s)]


def _schema(connection: sa.Connection) -> tuple[dict[tuple[str, str], str], set[str], set[str]]:
    """Columns with their types; those that a row may leave out; what no two rows may share."""
    inspector = sa.inspect(connection)
    columns, optional, unique = {}, set(), set()
    for table in filter(lambda name: _is_ours(name, "table", None), inspector.get_table_names()):
        for column in inspector.get_columns(table):
            columns[table, column["name"]] = str(column["type"])
            if column["nullable"] or column["default"] is not None:
                optional.add(f"{table}.{column['name']}")
        for constraint in inspector.get_unique_constraints(table):
            unique.add(f"{table} {sorted(constraint['column_names'])}")
        for index in inspector.get_indexes(table):
            if index["unique"]:
                unique.add(f"{table} {sorted(map(str, index['column_names']))}")
    return columns, optional, unique


def _only_adds(connection: sa.Connection, to: str, scripts: Path = SCRIPTS) -> list[str]:
    """What of the step to revision ``to`` a worker of the version before could not bear."""
    config = Config()
    config.set_main_option("script_location", str(scripts))
    config.attributes["connection"] = connection
    before, optional_before, unique_before = _schema(connection)
    command.upgrade(config, to)
    after, optional, unique = _schema(connection)
    tables = {table for table, _ in before}
    wrong = [
        f"{t}.{c} is gone or another type" for t, c in before if before[t, c] != after.get((t, c))
    ]
    added = [f"{t}.{c}" for t, c in after.keys() - before.keys() if t in tables]
    wrong += [
        f"{name} must be given, and old code does not" for name in added if name not in optional
    ]
    there = {f"{t}.{c}" for t, c in after}
    wrong += [f"{name} must be given now" for name in (optional_before & there) - optional]
    wrong += [f"{u} is unique now" for u in unique - unique_before if u.split()[0] in tables]
    return sorted(wrong)


@pytest.mark.parametrize(("before", "revision"), _steps())
def test_revisions_only_add_so_that_workers_of_before_go_on(
    tmp_path: Path, before: str, revision: str
) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/step.db")
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    with engine.connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, before)
        assert _only_adds(connection, revision) == []
    engine.dispose()


TAKING = """
import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    op.drop_column("things", "old")
    op.add_column("things", sa.Column("must", sa.Text, nullable=False, server_default="x"))
    op.create_index("ix_one", "things", ["name"], unique=True)
"""
FIRST = """
import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "things",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("old", sa.Text),
    )
"""


def test_a_revision_that_takes_away_is_found(tmp_path: Path) -> None:
    (tmp_path / "versions").mkdir()
    (tmp_path / "env.py").write_text((SCRIPTS / "env.py").read_text())
    (tmp_path / "versions" / "1.py").write_text(FIRST)
    (tmp_path / "versions" / "2.py").write_text(TAKING)
    engine = sa.create_engine(f"sqlite:///{tmp_path}/step.db")
    with engine.connect() as connection, connection.begin():
        assert _only_adds(connection, "1", tmp_path) == []
        assert _only_adds(connection, "2", tmp_path) == [
            "things ['name'] is unique now",
            "things.old is gone or another type",
        ]
    engine.dispose()


CONTRACTING = """
from alembic import op

revision = "9999"
down_revision = "{head}"
minimum_version = "1.3.0"


def upgrade() -> None:
    op.drop_table("strikes")
"""


@pytest.fixture(params=databases.KINDS)
def own_url(request: pytest.FixtureRequest, home: Path) -> Iterator[str]:
    """A migrated database that no other test sees: what is taken from it stays away."""
    if request.param == "sqlite":
        databases.prepare(databases.url_of(home))
        yield databases.url_of(home)
    else:
        postgres: Server = request.getfixturevalue("postgres")
        with postgres.database("zimage_contracting") as url:
            migrate(url)
            yield url


@pytest.fixture
def contracting(tmp_path: Path) -> Path:
    """The revisions of this version, and one that takes away what older versions use."""
    folder = tmp_path / "migrations"
    shutil.copytree(SCRIPTS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    head = max(path.name[:4] for path in SCRIPTS.glob("versions/*.py"))
    (folder / "versions" / "9999_contracting.py").write_text(CONTRACTING.format(head=head))
    return folder


@contextlib.contextmanager
def _hosts_of(url: str, **versions: str) -> Iterator[sa.Connection]:
    engine = create_engine(url, 1.0)
    with engine.connect() as connection:
        with connection.begin():
            for id, version in versions.items():
                told = HostReport(id, "a:1", "host", version, (), 1, 1, 0, 0, 0.0, 0.0, "ready", {})
                hosts.write(connection, told, 1.0)
        yield connection
    engine.dispose()


def test_revision_that_takes_away_is_refused_while_a_host_uses_it(
    own_url: str, contracting: Path
) -> None:
    with _hosts_of(own_url, gpu1="1.3.0", gpu2="1.2.0") as connection:
        with pytest.raises(OldHosts, match=r"before 1\.3\.0 use, and such a one runs on gpu2 \(1"):
            migrate(own_url, contracting)
        with connection.begin():
            assert sa.inspect(connection).has_table("strikes")
            hosts.want(connection, "gpu2", "removed", "", 2.0)
        migrate(own_url, contracting)
        assert not sa.inspect(connection).has_table("strikes")


def test_revision_that_takes_away_runs_where_all_hosts_do_without(
    own_url: str, contracting: Path
) -> None:
    with _hosts_of(own_url, gpu1="1.3.0", gpu2="1.10.0") as connection:
        migrate(own_url, contracting)
        assert not sa.inspect(connection).has_table("strikes")
