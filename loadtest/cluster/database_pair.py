"""A primary and its synchronous standby, on two machines of a network."""

import signal
from pathlib import Path
from typing import Any, LiteralString

from loadtest.cluster.network import Namespace
from loadtest.cluster.postgres import DEADLINE_S, Server
from loadtest.waiting import until

DATABASE = "zimage"
_PASSWORD = "only for proofs"
_HBA = """
local all,replication all trust
host replication all 10.77.0.0/24 trust
host all all 10.77.0.0/24 scram-sha-256
"""


class DatabasePair:
    """What is acknowledged is on both. ``folder``: with a short name, for sockets."""

    def __init__(self, folder: Path, first: Namespace, second: Namespace) -> None:
        self._machines = first, second
        self._folders = folder / "1", folder / "2"
        for made in self._folders:
            made.mkdir(parents=True)
        folder.chmod(0o755)
        self.password_file = folder / "password"
        self.password_file.write_text(f"{_PASSWORD}\n", encoding="utf-8")
        self.password_file.chmod(0o600)
        self.primary = self._server(0)
        self.standby = self._server(1)

    def _server(self, number: int) -> Server:
        machine = self._machines[number]
        listen = f"listen_addresses={machine.address}"
        return Server(
            self._folders[number], listen, "max_connections=300", "hot_standby=on",
            within=machine.prefix,
        )  # fmt: skip

    @property
    def url(self) -> str:
        """Of whichever takes writes."""
        hosts = "&".join(f"host={machine.address}" for machine in self._machines)
        return f"postgresql://zimage@/{DATABASE}?{hosts}&target_session_attrs=read-write"

    def start(self) -> None:
        self.primary.create()
        (self.primary.data / "pg_hba.conf").write_text(_HBA, encoding="utf-8")
        self.primary.start()
        with self.primary.connect() as admin:
            admin.execute(f"ALTER ROLE zimage PASSWORD '{_PASSWORD}'")
            admin.execute(f"CREATE DATABASE {DATABASE}")
        self.standby.program(
            "pg_basebackup", "-R", "-c", "fast", "-h", self.primary.folder, "-U", "zimage",
            "-D", self.standby.data,
        )  # fmt: skip
        # Not by the unix socket that the copy was made through: by the network, as others.
        to = f"host={self._machines[0].address} user=zimage"
        conf = self.standby.data / "postgresql.auto.conf"
        with conf.open("a", encoding="utf-8") as file:
            file.write(f"primary_conninfo = '{to}'\n")
        self.standby.start()
        with self.primary.connect() as admin:
            admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            admin.execute("SELECT pg_reload_conf()")
        until(self._is_synchronous, DEADLINE_S, "the standby follows")

    def _is_synchronous(self) -> bool:
        with self.primary.connect() as admin:
            states = admin.execute("SELECT sync_state FROM pg_stat_replication").fetchall()
        return states == [("sync",)]

    def value(self, query: LiteralString, *given: object) -> Any:
        """The first value of the cluster's rows that ``query`` finds."""
        with self.primary.connect(DATABASE) as admin:
            row = admin.execute(query, given).fetchone()
        return row and row[0]

    def lose_the_primary(self) -> None:
        """The machine falls silent, and PostgreSQL ends as in a crash."""
        self._machines[0].unplug()
        self.primary.stop(signal.SIGQUIT)

    def promote(self) -> None:
        """The standby becomes the primary, and waits for no other."""
        with self.standby.connect() as admin:
            admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
            admin.execute("SELECT pg_reload_conf()")
            promoted = admin.execute("SELECT pg_promote()").fetchone()
        if promoted != (True,):
            raise RuntimeError("the standby does not become the primary")

    def stop(self) -> None:
        for server in (self.primary, self.standby):
            server.stop()
