"""A real PostgreSQL server: on a unix socket, on a port where it is asked to, and gone with us."""

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psycopg

DEADLINE_S = 60.0
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "autovacuum=off")
_USERS = ("postgres", "nobody")
WITHOUT = "no PostgreSQL server is installed here; scripts/env --test does it"


def binaries() -> Path | None:
    """Where the newest server's programs are. Debian has them in no PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=_version)
    on_path = shutil.which("postgres")
    newest = found[-1] if found else Path(on_path) if on_path else None
    return newest.resolve().parent if newest else None


def _version(program: Path) -> int:
    name = program.parts[-3]
    return int(name) if name.isdigit() else 0


def _other_user() -> dict[str, Any]:
    """For ``subprocess``: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = next(known[name] for name in _USERS if name in known)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _setpriv(user: dict[str, Any]) -> list[str]:
    if not user:
        return []
    return [f"--reuid={user['user']}", f"--regid={user['group']}", "--clear-groups"]


class Server:
    """Listens in ``folder``, whose name must be short. ``options``: as in postgresql.conf.
    ``within``: what its command begins with, such as that of a namespace. ``LookupError`` where no
    server is installed."""

    def __init__(self, folder: Path, *options: str, within: Sequence[str] = ()) -> None:
        found = binaries()
        if found is None:
            raise LookupError(WITHOUT)
        self.folder = folder
        self.data = folder / "data"
        self._binaries = found
        self._options = ("listen_addresses=", f"unix_socket_directories={folder}", *options)
        self._within = within
        self._as = _other_user()
        self._process: subprocess.Popen[bytes] | None = None
        if self._as:
            os.chown(folder, self._as["user"], self._as["group"])
        folder.chmod(0o755)

    def create(self) -> Self:
        self.program(
            "initdb", "--no-sync", "--auth=trust", "--username=zimage", "--encoding=UTF8",
            "--locale=C.UTF-8", "-D", self.data,
        )  # fmt: skip
        return self

    def program(self, name: str, *arguments: object) -> None:
        """Run one of PostgreSQL's to its end."""
        command = [str(self._binaries / name), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", **self._as)
        if done.returncode:
            raise RuntimeError(done.stderr)

    def start(self) -> Self:
        """Listen, and wait until it answers. It does not outlive this process."""
        told = [part for option in self._options for part in ("-c", option)]
        program = [str(self._binaries / "postgres"), "-D", str(self.data), *told]
        # A namespace is entered as root, and only then is the user another one.
        command = [*self._within, "setpriv", *_setpriv(self._as), "--pdeathsig", "QUIT", *program]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")
        self._process = process
        end = time.monotonic() + DEADLINE_S
        while not self._answers():
            if process.poll() is not None or time.monotonic() > end:
                log_text = (self.folder / "log").read_text()[-2000:]
                raise RuntimeError(f"the server does not answer: {log_text}")
            time.sleep(0.02)
        return self

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    @property
    def pid(self) -> int:
        """Of the process that all others of it come from."""
        assert self._process is not None
        return self._process.pid

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """SIGQUIT: at once, as in a crash. SIGINT: in good order."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(DEADLINE_S)
            self._process = None

    def connect(self, database: str = "postgres") -> "psycopg.Connection[Any]":
        """Each statement is a transaction."""
        return psycopg.connect(
            host=str(self.folder), user="zimage", dbname=database, autocommit=True
        )

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://zimage@/{database}?host={self.folder}"

    @contextmanager
    def database(self, name: str, template: str = "template1") -> Iterator[str]:
        """The URL of a new one, which is dropped in the end."""
        with self.connect() as admin:
            admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
            yield self.url(name)
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def guarded(self, role: str, password: str) -> Iterator[str]:
        """The URL of a database that ``role`` gets at by its password alone."""
        rules = f"local all {role} scram-sha-256\nlocal all all trust\n"
        (self.data / "pg_hba.conf").write_text(rules)
        with self.connect() as admin:
            admin.execute("SELECT pg_reload_conf()")
            admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
            admin.execute(f"CREATE DATABASE {role} OWNER {role}")
        yield f"postgresql://{role}@/{role}?host={self.folder}"
        with self.connect() as admin:
            admin.execute(f"DROP DATABASE {role} WITH (FORCE)")
            admin.execute(f"DROP ROLE {role}")
