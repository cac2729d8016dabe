"""Brings a database to this version of the kit; ``zimage up`` runs it before workers start.

Alembic's revisions lie in ``versions/``. They only add: a worker of the version before must be
able to go on while a rolling restart is under way.
"""

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from worker.storage import search
from worker.storage.database import create_engine, is_sqlite, let_shrink, lock_to_migrate

LOCK_TIMEOUT_S = 30.0
SCRIPTS = Path(__file__).parent

ERRORS = (sa.exc.SQLAlchemyError, CommandError, OSError)


def migrate(url: str, scripts: Path = SCRIPTS) -> None:
    """Make an SQLite database where it is missing, and run the revisions that it lacks, in one
    transaction. One of a newer version is left as it is, so that a new version of the kit can be
    taken back. Raises one of ``ERRORS``.
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
                command.upgrade(config, "head")
        # Something for the next time, not a reason to stay down.
        with suppress(sqlite3.Error):
            let_shrink(engine)
        with suppress(sa.exc.DBAPIError):
            search.make_index(engine)
    finally:
        engine.dispose()


def _newer(connection: sa.Connection, config: Config) -> bool:
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    return not known.issuperset(MigrationContext.configure(connection).get_current_heads())


def _make_file(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
