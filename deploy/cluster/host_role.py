"""A role of PostgreSQL for each host, so that one can be shut out without the others.

Whatever it makes belongs to the cluster's own role, as which each of its sessions begins.
"""

import secrets
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
    own = connection.exec_driver_sql("SELECT current_user").scalar_one()
    verb = "ALTER" if exists(connection, name) else "CREATE"
    try:
        with connection.begin_nested():
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
        with connection.begin_nested():
            connection.exec_driver_sql(f"ALTER ROLE {_quoted(name)} NOLOGIN")
            _end_sessions(connection, name)
            connection.exec_driver_sql(f"DROP ROLE {_quoted(name)}")
    except DBAPIError:
        return False
    return True


def _end_sessions(connection: "Connection", name: str) -> None:
    from sqlalchemy.exc import DBAPIError

    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %(name)s"
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(ended, {"name": name})
    except DBAPIError:
        return  # they end with their connection; new ones do not begin


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'
