"""A database of PostgreSQL as its own programs save it and put it back.

``pg_dump``, ``pg_restore`` and ``psql`` of the server's version, or of a newer one: whom operators
trust with their databases, and what any PostgreSQL can read without zimage.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from deploy.cell import CellError

if TYPE_CHECKING:
    from typing import LiteralString

    import psycopg
    import psycopg.sql

_DEBIAN = "/usr/lib/postgresql/*/bin"
_CONNECT_S = 5
_LOCK_S = 10
_HEAD_BYTES = 4096
_QUIET_S = 15.0  # of a program that shall only say its version
_PARTS = frozenset(
    {
        "TABLE", "TABLE DATA", "SEQUENCE", "SEQUENCE OWNED BY", "SEQUENCE SET", "DEFAULT",
        "CONSTRAINT", "FK CONSTRAINT", "INDEX",
    }
)  # fmt: skip
"""What is put back of a dump. Extensions are the server's, and the index that needs one is made by
``zimage up``."""
_PART = re.compile(r"^\d+; \d+ \d+ ([A-Z ]+) (\S+) (\S+)")
_MADE_BY_UP = "ix_images_words"
_ID = re.compile(r"[\w-]{1,64}")


@dataclass(frozen=True)
class Server:
    """One database. ``url``: as workers connect to it. Each method may raise ``CellError``."""

    url: str
    name: str
    """As messages call it."""

    @contextmanager
    def connected(self) -> Iterator["psycopg.Connection[Any]"]:
        """Each statement is a transaction, and takes as long as it takes."""
        import psycopg

        said, password = self._address()
        try:
            with psycopg.connect(said, password=password, autocommit=True) as connection:
                yield connection
        except psycopg.Error as error:
            why = str(error).splitlines()[0]
            raise CellError(f"the database {self.name} cannot be used: {why}") from None

    def save(self, path: Path, snapshot: str = "") -> None:
        """Write all of it as of one moment, or of the ``snapshot`` that somebody holds."""
        with self.connected() as connection:
            program = _program("pg_dump", _version(connection))
        path.touch(mode=0o600)  # which pg_dump writes into
        options = ["--format=custom", f"--lock-wait-timeout={_LOCK_S}s", f"--file={path}"]
        options += [f"--snapshot={snapshot}"] if snapshot else []
        self._run([str(program), *options, f"--dbname={self._address()[0]}"])

    def replace_by(self, path: Path, without_images: Sequence[str] = ()) -> None:
        """Put back what ``save`` wrote, without the gallery's rows of these ids, in the place of
        all tables that are there: in one transaction."""
        with self.connected() as connection:
            version, mine = _version(connection), _tables(connection)
            made_in = _first(connection, "SELECT quote_ident(current_schema())")
        restore, psql = _program("pg_restore", version), _program("psql", version)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent) as parts:
            parts.writelines(_wanted(self._output([str(restore), "--list", str(path)])))
            parts.flush()
            options = ["--no-owner", "--no-privileges", "--no-comments", f"--use-list={parts.name}"]
            # Not --single-transaction, which commits whatever came before its input ended.
            said = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"]
            self._pipe(
                [str(restore), *options, "--file=-", str(path)],
                [str(psql), *said, "--output=/dev/null", f"--dbname={self._address()[0]}"],
                _before(mine),
                _after(made_in, without_images),
            )

    def tables(self) -> list[str]:
        """Those that are ours, as SQL names them."""
        with self.connected() as connection:
            return _tables(connection)

    @contextmanager
    def scratch(self) -> Iterator["Server"]:
        """An empty database beside this one, which goes again."""
        import psycopg.sql
        import sqlalchemy as sa

        made = sa.make_url(self.url)
        name = f"{made.database}_drill"
        quoted = psycopg.sql.Identifier(name)
        with self.connected() as connection:
            try:
                # One that a killed drill left; another one's that is under way stays.
                connection.execute(_sql("DROP DATABASE IF EXISTS {}", quoted))
                connection.execute(_sql("CREATE DATABASE {} TEMPLATE template0", quoted))
            except psycopg.errors.InsufficientPrivilege:
                role = _first(connection, "SELECT quote_ident(current_user)")
                raise CellError(
                    f"{role} may make no database beside {self.name} for the drill: "
                    f"ALTER ROLE {role} CREATEDB, or name an empty one with --scratch"
                ) from None
        try:
            yield Server(made.set(database=name).render_as_string(False), name)
        finally:
            with self.connected() as connection:
                connection.execute(_sql("DROP DATABASE IF EXISTS {} WITH (FORCE)", quoted))

    @contextmanager
    def emptied(self) -> Iterator["Server"]:
        """This one, which must be empty and is so again; ``CellError``."""
        if self.tables():
            raise CellError(f"{self.name} has tables: name an empty database for the drill")
        try:
            yield self
        finally:
            with self.connected() as connection:
                for table in _tables(connection):
                    connection.execute(f"DROP TABLE {table} CASCADE")

    def _address(self) -> tuple[str, str | None]:
        """For libpq, and the password, which no list of processes shall show."""
        from worker.storage import postgres

        return postgres.address(self.url, connect_timeout=_CONNECT_S)

    def _environment(self) -> dict[str, str]:
        password = self._address()[1]
        return {**os.environ, "LC_ALL": "C", **({"PGPASSWORD": password} if password else {})}

    def _run(self, command: list[str]) -> None:
        self._output(command)

    def _output(self, command: list[str]) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, env=self._environment(), check=False
        )
        if done.returncode:
            raise self._failed(command, done.stderr)
        return done.stdout

    def _pipe(self, source: list[str], target: list[str], before: str, after: str) -> None:
        """What ``source`` says, between these texts, is told ``target``; all of it or nothing."""
        with (
            tempfile.TemporaryFile() as complaints,
            subprocess.Popen(
                source, stdout=subprocess.PIPE, stderr=complaints, env=self._environment()
            ) as giver,
            subprocess.Popen(
                target, stdin=subprocess.PIPE, stderr=complaints, env=self._environment()
            ) as taker,
        ):
            assert giver.stdout is not None
            assert taker.stdin is not None
            try:
                with suppress(BrokenPipeError):  # its complaint says why
                    _tell(giver.stdout, taker.stdin, before)
                    if giver.wait() == 0:
                        taker.stdin.write(after.encode())
            except BaseException:
                giver.kill()
                taker.kill()
                raise
            finally:
                giver.stdout.close()
                with suppress(BrokenPipeError):
                    taker.stdin.close()
            failed = source if giver.wait() not in (0, -13) else target
            if giver.returncode or taker.wait():
                complaints.seek(0)
                raise self._failed(failed, complaints.read().decode(errors="replace"))

    def _failed(self, command: list[str], complaint: str) -> CellError:
        lines = [line for line in complaint.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or ["it failed"]
        return CellError(f"{Path(command[0]).name} with {self.name}: {errors[0][:300]}")


def _tell(source: IO[bytes], target: IO[bytes], before: str) -> None:
    target.write(before.encode())
    # Version 17 and later begin so, and no older server knows it.
    target.write(source.read(_HEAD_BYTES).replace(b"\nSET transaction_timeout = 0;\n", b"\n", 1))
    shutil.copyfileobj(source, target, 1 << 20)


def _before(tables: Sequence[str]) -> str:
    dropped = "".join(f"DROP TABLE IF EXISTS {table} CASCADE;\n" for table in tables)
    return f"BEGIN;\nSET lock_timeout = '{_LOCK_S}s';\nSET statement_timeout = 0;\n{dropped}"


def _after(schema: str, ids: Sequence[str]) -> str:
    """``ids`` come out of an archive: what is no id is not asked for."""
    named = ", ".join(f"'{id}'" for id in ids if _ID.fullmatch(id))
    deleted = f"DELETE FROM {schema}.images WHERE id IN ({named});\n" if named else ""
    return f"\n{deleted}COMMIT;\n"


def _wanted(listed: str) -> Iterator[str]:
    for line in listed.splitlines(keepends=True):
        found = _PART.match(line)
        if found and found[1].split("- ")[0].strip() in _PARTS and _MADE_BY_UP not in line:
            yield line


def _tables(connection: "psycopg.Connection[Any]") -> list[str]:
    """Those that are ours, quoted."""
    found = connection.execute(
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables "
        "WHERE schemaname = current_schema() AND pg_has_role(tableowner, 'USAGE') ORDER BY 1"
    )
    return [name for (name,) in found]


def _sql(text: "LiteralString", name: "psycopg.sql.Identifier") -> "psycopg.sql.Composed":
    import psycopg.sql

    return psycopg.sql.SQL(text).format(name)


def _first(connection: "psycopg.Connection[Any]", asked: "LiteralString") -> str:
    row = connection.execute(asked).fetchone()
    assert row is not None
    return str(row[0])


def _version(connection: "psycopg.Connection[Any]") -> int:
    return connection.info.server_version // 10000


def _program(name: str, server: int) -> Path:
    """Of the server's version, or of the next newer one; ``CellError`` where there is none."""
    found = {version: path for path in _programs(name) if (version := _version_of(path))}
    fit = sorted(version for version in found if version >= server)
    if fit:
        return found[fit[0]]
    have = f"only that of version {max(found)}" if found else "none"
    raise CellError(
        f"the server is PostgreSQL {server}, and there is {have} of {name} here: "
        f"apt-get install postgresql-client-{server}, or a newer one (apt.postgresql.org has all)"
    )


def _programs(name: str) -> list[Path]:
    """All of this name: Debian keeps those of each version in a folder of its own."""
    folders = sorted(Path("/").glob(_DEBIAN.lstrip("/")))
    on_path = shutil.which(name)
    return [*([Path(on_path)] if on_path else []), *(folder / name for folder in folders)]


def _version_of(program: Path) -> int:
    """0: it does not run."""
    try:
        done = subprocess.run(
            [str(program), "--version"], capture_output=True, text=True, timeout=_QUIET_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    told = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
    return int(told[1]) if told and done.returncode == 0 else 0
