"""What this machine may do with the database on a server, and how its servers are, each finding
with its remedy. ``checks.database`` says before whether it can be used at all."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deploy.cell import Cell
from deploy.finding import Finding

if TYPE_CHECKING:
    import psycopg

MAX_SKEW_S = 1.0
_CONNECT_S = 3
_LAG_WARN_S = 10.0
_MAX_NAMES = 5
_CLOCK = "let chrony or systemd-timesyncd set the clocks of this machine and of the server"

_MAY_NOT = """
    SELECT format('%s %s', lower(may), tablename) FROM pg_tables,
        unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS may
    WHERE schemaname = current_schema()
        AND NOT has_table_privilege(format('%I.%I', schemaname, tablename), may)
    ORDER BY 1
"""
_MAY_MAKE = """
    SELECT coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)
"""
_STANDBYS = """
    SELECT application_name, sync_state, extract(epoch FROM replay_lag)::float8
    FROM pg_stat_replication WHERE state IS NOT NULL ORDER BY 1
"""
_HIDDEN = "SELECT count(*) FROM pg_stat_replication WHERE state IS NULL"
_BEHIND = """
    SELECT CASE WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0
        ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END::float8
"""


@dataclass(frozen=True)
class _Server:
    """One of those that the URL names. ``skew_s``: its clock against this machine's, as far as the
    way there and back can tell."""

    name: str
    why: str = ""
    """Why it cannot be reached."""
    standby: bool = False
    skew_s: float = 0.0
    behind_s: float | None = None


def doctor(cell: Cell) -> Iterator[Finding]:
    """Each server of the URL by itself, then the one that may be written to."""
    if not cell.layout.postgres_url:
        return
    import psycopg

    from worker.storage import postgres

    try:
        told, password = postgres.address(cell.layout.postgres_url, connect_timeout=_CONNECT_S)
        servers = [_look(each, password) for each in _each(told)]
    except (psycopg.Error, OSError):
        return  # ``checks.database`` says why
    yield from _of_servers(servers)
    if all(server.standby or server.why for server in servers):
        return
    try:
        with closing(psycopg.connect(told, password=password, autocommit=True)) as connection:
            yield from _rights(cell.layout.database_name, connection)
            yield from _replication(connection)
    except psycopg.Error as error:
        why = str(error).splitlines()[0]
        yield Finding("fail", "database", why, "see the server's log")


def _each(told: str) -> list[dict[str, Any]]:
    """What libpq is told for each server alone."""
    from psycopg.conninfo import conninfo_to_dict

    given = conninfo_to_dict(told)
    given.pop("target_session_attrs", None)
    hosts = str(given.pop("host", "")).split(",")
    ports = str(given.pop("port", "")).split(",")
    if len(ports) < len(hosts):
        ports = ports[:1] * len(hosts)
    named = zip(hosts, ports, strict=True)
    return [
        {**given, **({"host": host} if host else {}), **({"port": port} if port else {})}
        for host, port in named
    ]


def _look(given: dict[str, Any], password: str | None) -> _Server:
    import psycopg

    found = _Server(":".join(str(given[key]) for key in ("host", "port") if key in given))
    try:
        with closing(psycopg.connect(**given, password=password, autocommit=True)) as connection:
            standby = bool(_one(connection, "SELECT pg_is_in_recovery()"))
            behind_s = _one(connection, _BEHIND) if standby else None
            return replace(found, standby=standby, skew_s=_skew_s(connection), behind_s=behind_s)
    except psycopg.Error as error:
        return replace(found, why=(str(error).splitlines() or [""])[0])


def _skew_s(connection: "psycopg.Connection[Any]") -> float:
    """At least so far is the server's clock ahead, or behind where it is negative."""
    before = time.time()
    server = float(_one(connection, "SELECT extract(epoch FROM clock_timestamp())"))
    after = time.time()
    return server - min(max(server, before), after)


def _one(connection: "psycopg.Connection[Any]", asked: str) -> Any:
    row = connection.execute(asked.encode()).fetchone()
    return None if row is None else row[0]


def _of_servers(servers: list[_Server]) -> Iterator[Finding]:
    for server in servers:
        subject = f"database {server.name}".rstrip()
        if server.why:
            remedy = "mend it, or take it out of database.url: nobody can go there when one is lost"
            yield Finding("warn", subject, server.why, remedy)
            continue
        if abs(server.skew_s) > MAX_SKEW_S:
            way = "ahead of" if server.skew_s > 0 else "behind"
            text = f"its clock is {abs(server.skew_s):.1f} s {way} this machine's"
            yield Finding("fail", subject, text, _CLOCK)
        elif not server.standby:
            yield Finding("ok", subject, "may be written to; its clock is right")
        elif (server.behind_s or 0.0) > _LAG_WARN_S:
            text = f"a standby, {server.behind_s:.0f} s behind"
            yield Finding("warn", subject, text, "look at its log and at the network between them")
        else:
            yield Finding("ok", subject, "a standby that follows; its clock is right")
    if all(server.standby for server in servers if not server.why):
        text = "none of its servers may be written to"
        remedy = "promote a standby: pg_ctlcluster VERSION main promote"
        yield Finding("fail", "database", text, remedy)


def _rights(name: str, connection: "psycopg.Connection[Any]") -> Iterator[Finding]:
    role = _one(connection, "SELECT current_user")
    if not _one(connection, _MAY_MAKE):
        text = f"{role} may make no tables in {name}: zimage up cannot migrate it"
        remedy = f"GRANT CREATE, USAGE ON SCHEMA public TO {role}, or make it the owner"
        yield Finding("fail", "database", text, remedy)
    lacks = [what for (what,) in connection.execute(_MAY_NOT.encode())]
    if lacks:
        more = ", …" if len(lacks) > _MAX_NAMES else ""
        text = f"{role} may not {', '.join(lacks[:_MAX_NAMES])}{more}"
        remedy = f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"
        yield Finding("fail", "database", text, remedy)


def _replication(connection: "psycopg.Connection[Any]") -> Iterator[Finding]:
    """As far as the role may see it."""
    subject = "replication"
    wanted = _one(connection, "SELECT current_setting('synchronous_standby_names')")
    standbys = connection.execute(_STANDBYS.encode()).fetchall()
    if _one(connection, _HIDDEN):
        text = "there are standbys, of which this role may see nothing"
        yield Finding("ok", subject, text, "to see them: GRANT pg_monitor to it")
        return
    for name, _, lag_s in standbys:
        if (lag_s or 0.0) > _LAG_WARN_S:
            text = f"{name} is {lag_s:.0f} s behind"
            remedy = "look at its log and at the network between them"
            yield Finding("warn", subject, text, remedy)
    if wanted and not any(state in {"sync", "quorum"} for _, state, _ in standbys):
        text = f"no synchronous standby ({wanted}) follows: every change waits for one"
        remedy = "start it, or empty synchronous_standby_names and reload the server"
        yield Finding("fail", subject, text, remedy)
    elif standbys:
        told = ", ".join(f"{name} {state}" for name, state, _ in standbys)
        also = "" if wanted else "; none is synchronous: one that is promoted may lack last changes"
        yield Finding("ok", subject, f"{told}{also}")
    else:
        yield Finding("ok", subject, "no standby: what is lost with it comes out of the backup")
