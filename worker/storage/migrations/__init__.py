"""Brings a database to this version of the kit; ``zimage up`` runs it before workers start.

Alembic's revisions lie in ``versions/``. They only add: a worker of the version before must be
able to go on while a rolling restart is under way. One that takes something away comes a release
later, and says so: ``minimum_version = "1.3.0"`` is the first version whose code does without. It
is refused while a host of the cluster has an older one.
"""

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from packaging.version import InvalidVersion, Version

from worker.storage import hosts, search
from worker.storage.database import create_engine, is_sqlite, let_shrink, lock_to_migrate

LOCK_TIMEOUT_S = 30.0
SCRIPTS = Path(__file__).parent

ERRORS = (sa.exc.SQLAlchemyError, CommandError, OSError)


class OldHosts(Exception):
    """Hosts of the cluster use what a revision would take away; names them and the remedy."""


def migrate(url: str, scripts: Path = SCRIPTS) -> None:
    """Make an SQLite database where it is missing, and run the revisions that it lacks, in one
    transaction. One of a newer version is left as it is, so that a new version of the kit can be
    taken back. Raises ``OldHosts``, or one of ``ERRORS``.
    """
    path = sa.make_url(url).database
    if is_sqlite(url) and path:
        _make_file(Path(path))
    engine = create_engine(url, LOCK_TIMEOUT_S)
    config = Config()
    config.set_main_option("script_location", str(scripts))
    try:
        with engine.connect() as connection, connection.begin():
            config.attributes["connection"] = connection
            lock_to_migrate(connection)
            if not _newer(connection, config):
                _require_no_old_hosts(connection, config)
                command.upgrade(config, "head")
        # Something for the next time, not a reason to stay down.
        with suppress(sqlite3.Error):
            let_shrink(engine)
        with suppress(sa.exc.DBAPIError):
            search.make_index(engine)
    finally:
        engine.dispose()


def minimum_version(script: Script) -> str:
    """The first version that does without what the revision takes away; empty: it only adds."""
    return str(getattr(script.module, "minimum_version", ""))


def _require_no_old_hosts(connection: sa.Connection, config: Config) -> None:
    for script in _missing(connection, config):
        minimum = minimum_version(script)
        old = _older(connection, minimum) if minimum else []
        if old:
            names = ", ".join(f"{host.id} ({host.version})" for host in old)
            raise OldHosts(
                f"revision {script.revision} takes away what versions before {minimum} use, and "
                f"such a one runs on {names}: zimage hosts upgrade {minimum} first; one that is "
                "gone for good: zimage hosts remove NAME"
            )


def _missing(connection: sa.Connection, config: Config) -> list[Script]:
    """The revisions that this database lacks."""
    there = MigrationContext.configure(connection).get_current_heads()
    return list(ScriptDirectory.from_config(config).iterate_revisions("heads", there or "base"))


def _older(connection: sa.Connection, minimum: str) -> list[hosts.Host]:
    if not sa.inspect(connection).has_table(hosts.hosts.name):
        return []
    known = hosts.read_all(connection)
    return [host for host in known if host.wanted != "removed" and _is_older(host.version, minimum)]


def _is_older(version: str, minimum: str) -> bool:
    try:
        return Version(version) < Version(minimum)
    except InvalidVersion:
        return True


def _newer(connection: sa.Connection, config: Config) -> bool:
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    return not known.issuperset(MigrationContext.configure(connection).get_current_heads())


def _make_file(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
