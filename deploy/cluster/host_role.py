"""A role of PostgreSQL for each host, so that one can be shut out without the others.

Whatever it makes belongs to the role that owns the cluster's tables, as which each of its sessions
begins. That is the one of ``database.url``, or one as which that begins its sessions, too: from
PostgreSQL 16 on nobody but a superuser may hand on the role that he has logged in as.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from deploy.cell import Cell

if TYPE_CHECKING:
    from sqlalchemy import Connection


def name_of(cell: Cell, host: str) -> str:
    """Such as zimage_gpu2."""
    from sqlalchemy import make_url

    return f"{make_url(cell.layout.database_url).username}_{host.replace('-', '_')}"[:63]


def make(connection: "Connection", name: str) -> str | None:
    """The password of the role ``name``, which is made, or gets a new one; None where this
    connection's role may make none."""
    from sqlalchemy.exc import DBAPIError

    password = secrets.token_urlsafe(24)
    raw: Any = connection.connection.driver_connection
    # Only a hash is sent: servers may log what they are told.
    hashed = raw.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256")
    verb = "ALTER" if exists(connection, name) else "CREATE"
    try:
        with connection.begin_nested(), _making(connection) as own:
            connection.exec_driver_sql(
                f"{verb} ROLE {_quoted(name)} LOGIN PASSWORD '{hashed.decode()}'"
            )
            connection.exec_driver_sql(f"GRANT {_quoted(own)} TO {_quoted(name)}")
            connection.exec_driver_sql(f"ALTER ROLE {_quoted(name)} SET role = {_quoted(own)}")
    except DBAPIError:
        return None
    return password


def exists(connection: "Connection", name: str) -> bool:
    asked = "SELECT true FROM pg_roles WHERE rolname = %(name)s"
    return connection.exec_driver_sql(asked, {"name": name}).scalar() is not None


def remove(connection: "Connection", name: str) -> bool:
    """End the role ``name`` and, as far as this connection's role may, its sessions; whether there
    was one."""
    from sqlalchemy.exc import DBAPIError

    if not exists(connection, name):
        return False
    try:
        with connection.begin_nested(), _making(connection) as own:
            connection.exec_driver_sql(f"ALTER ROLE {_quoted(name)} NOLOGIN")
            connection.exec_driver_sql(f"REVOKE {_quoted(own)} FROM {_quoted(name)}")
            _end_sessions(connection, name)
            connection.exec_driver_sql(f"DROP ROLE {_quoted(name)}")
    except DBAPIError:
        return False
    return True


@contextmanager
def _making(connection: "Connection") -> Iterator[str]:
    """As the role that has logged in, where that may make others; the one that owns the tables."""
    own, may = connection.exec_driver_sql(
        "SELECT current_user, rolcreaterole OR rolsuper FROM pg_roles WHERE rolname = session_user"
    ).one()
    if may:
        connection.exec_driver_sql("SET LOCAL ROLE NONE")
    yield str(own)
    connection.exec_driver_sql(f"SET LOCAL ROLE {_quoted(own)}")


def _end_sessions(connection: "Connection", name: str) -> None:
    from sqlalchemy.exc import DBAPIError

    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %(name)s"
    try:
        with connection.begin_nested():
            # Whoever is a member of a role may end its sessions.
            connection.exec_driver_sql(f"GRANT {_quoted(name)} TO CURRENT_USER")
            connection.exec_driver_sql(ended, {"name": name})
    except DBAPIError:
        return  # they end with their connection; new ones do not begin


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'
