"""What is PostgreSQL's alone: how it is connected to, and what its errors mean.

A server that is lost must not be waited for: what a connection waits for ends within about three
seconds, whichever side of the network fell silent, and the next one looks for a server again, at
all hosts of the URL.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

PASSWORD_FILE = "password_file"
"""Of a URL's query, and ours: the file is read whenever a connection is made, so that whoever
changes the password need not start anything again."""

READ_ONLY = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
"""All queries of one look see the same, as in SQLite."""

AT_ONCE = {"isolation_level": "AUTOCOMMIT"}
"""Each statement is a transaction."""

_NAME = "zimage"  # by which a server lists our connections
_SILENCE_MS = 3000
_CONNECT_S = 2  # each host; libpq's least
_FORGOTTEN_S = 10.0  # a transaction whose process was stopped must not hold its rows for ever

_CONNECTION = {
    "application_name": _NAME,
    "tcp_user_timeout": _SILENCE_MS,
    "keepalives_idle": 1,
    "keepalives_interval": 1,
    "keepalives_count": 2,
}
"""A server that is lost is noticed, whatever was asked of it."""

_MIGRATION_LOCK_MS = 5000
_STATEMENT_S = "statement_s"

_CONFLICTS = {"40001", "40P01"}  # serialization failure, deadlock
_CANCELLED = "57014"


def create_engine(url: sa.URL, timeout_s: float, connections: int) -> sa.Engine:
    """``timeout_s`` bounds each statement, waiting for locks included."""
    password_file = url.query.get(PASSWORD_FILE)
    url = url.difference_update_query([PASSWORD_FILE])
    engine = sa.create_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=timeout_s,
        pool_pre_ping=True,
        execution_options={_STATEMENT_S: timeout_s},
        connect_args={k: v for k, v in _options(timeout_s).items() if k not in url.query},
    )
    event.listen(engine, "connect", _store_no_nul)
    if isinstance(password_file, str):
        file = Path(password_file)
        event.listen(engine, "do_connect", lambda _, record, args, given: _add(given, file))
    return engine


def address(url: str, connect_timeout: int) -> tuple[str, str | None]:
    """What libpq's programs are told for ``url``, and the password apart. Raises ``OSError``."""
    from psycopg.conninfo import make_conninfo

    made = sa.make_url(url)
    file = made.query.get(PASSWORD_FILE)
    password = Path(file).read_text(encoding="utf-8").strip() if isinstance(file, str) else None
    plain = made.difference_update_query([PASSWORD_FILE])
    _, given = sa.create_engine(plain).dialect.create_connect_args(plain)
    given.pop("context", None)  # SQLAlchemy's own for psycopg
    lasting = {**_CONNECTION, "connect_timeout": connect_timeout}
    return make_conninfo("", **{**lasting, **given}), password


def _options(timeout_s: float) -> dict[str, Any]:
    settings = {
        "statement_timeout": timeout_s,
        "idle_in_transaction_session_timeout": _FORGOTTEN_S,
    }
    return {
        **_CONNECTION,
        "connect_timeout": _CONNECT_S,
        "options": " ".join(f"-c {name}={round(s * 1000)}" for name, s in settings.items()),
    }


def _add(given: dict[str, Any], password_file: Path) -> None:
    try:
        given["password"] = password_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise exc.OperationalError(None, None, error) from error


def _store_no_nul(connection: Any, _: object) -> None:
    """A character that prompts may have and PostgreSQL's texts may not is stored as another."""
    from psycopg.types.string import StrDumper

    class Dumper(StrDumper):
        def dump(self, obj: str) -> Any:
            return super().dump(without_nul(obj))

    connection.adapters.register_dumper(str, Dumper)


def without_nul(text: str) -> str:
    """As PostgreSQL stores ``text``."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def limit(connection: sa.Connection, limit_s: float) -> None:
    """End each statement of this transaction that takes longer."""
    if limit_s >= connection.get_execution_options()[_STATEMENT_S]:
        return
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {round(limit_s * 1000)}")


def let_migrate(connection: sa.Connection) -> None:
    """A statement of this transaction may take long, but not wait long for the locks of others, who
    would all wait behind it."""
    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_MIGRATION_LOCK_MS}")


@dataclass(frozen=True)
class Server:
    """``version``: the first number of it. ``connections``: of all clients together."""

    version: int
    encoding: str
    connections: int
    is_searched_by_index: bool
    """Or has no pictures yet."""


def server(connection: sa.Connection) -> Server:
    """What there is to know of the database before a cell uses it."""
    asked = sa.text(
        "SELECT current_setting('server_version_num')::int / 10000, "
        "pg_encoding_to_char(encoding), current_setting('max_connections')::int, "
        "to_regclass('images') IS NULL OR to_regclass('ix_images_words') IS NOT NULL "
        "FROM pg_database WHERE datname = current_database()"
    )
    version, encoding, connections, indexed = connection.execute(asked).one()
    return Server(version, encoding, connections, indexed)


@contextmanager
def snapshot(connection: sa.Connection) -> Iterator[str]:
    """See one moment for as long as it takes; its name for others who shall see the same."""
    connection = connection.execution_options(**READ_ONLY)
    with connection.begin():
        for limit in ("statement_timeout", "idle_in_transaction_session_timeout"):
            connection.exec_driver_sql(f"SET LOCAL {limit} = 0")
        yield str(connection.scalar(sa.select(sa.func.pg_export_snapshot())))


def others(connection: sa.Connection) -> int:
    """How many other connections of cells and commands use this database."""
    asked = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = :name AND pid <> pg_backend_pid()"
    )
    return int(connection.execute(asked, {"name": _NAME}).scalar_one())


def was_limited(error: exc.DBAPIError) -> bool:
    return _state(error) == _CANCELLED


def is_conflict(error: exc.DBAPIError) -> bool:
    """Whether the same transaction may succeed when it is tried again: others were in its way."""
    return _state(error) in _CONFLICTS


def _state(error: exc.DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)
