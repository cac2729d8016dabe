"""Machines of a cluster as folders, with the certificates that they would have got by joining."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from deploy.cell import Cell
from deploy.cluster import certificates
from deploy.cluster.authority import Authority, Role
from deploy.cluster.certificates import ROLES
from deploy.config import load
from deploy.host import whole_file
from deploy.layout import Layout
from tests import command_line
from tests.deploy.processes import wait_until
from tests.ports import free_port, free_ports


def layout_in(folder: Path) -> Layout:
    return Layout(folder, folder / "run")


def equip(
    layout: Layout,
    authority: Authority,
    host: str,
    roles: tuple[Role, ...] = ROLES,
    now: datetime | None = None,
) -> None:
    """Give the machine of ``layout`` the authority, an empty list of revocations, and a certificate
    and key for each of ``roles``."""
    whole_file.write(layout.authority_certificate, authority.pem, 0o644)
    whole_file.write(layout.revocation_list, authority.revocation_list({}), 0o644)
    for role in roles:
        request = certificates.pending(layout, role, host)
        signed = authority.sign(request.csr, host, role, now)
        certificates.install(layout, role, certificates.pem(signed))


CONFIG = """
[cell]
name = "{host}"
var_dir = "{folder}/var"
[listen]
port = {port}
auth = "{auth}"
[ops]
port = {ops_port}
[model]
source = "synthetic:step_ms=20"
[[workers]]
device = "cpu"
threads = 1
[cluster]
name = "studio"
host = "{host}"
address = "127.0.0.1:{cluster_port}"
role = "{role}"
[database]
url = "{url}"
[objects]
url = "s3://pictures/studio"
endpoint = "http://127.0.0.1:1"
credentials_file = "{folder}/credentials"
{more}
"""


class Machine:
    """One with a ``cluster.toml`` in a folder of its own, and its command line."""

    def __init__(
        self, folder: Path, url: str, host: str = "gpu1", role: str = "both", more: str = ""
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.config_path = folder, folder / "cluster.toml"
        (folder / "credentials").write_text("[default]\naws_access_key_id = a\n")
        port, ops_port, cluster_port = free_ports(3)
        values = {"port": port, "ops_port": ops_port, "cluster_port": cluster_port}
        told = {"folder": folder, "url": url, "host": host, "role": role, "more": more}
        self.config_path.write_text(CONFIG.format(**values, **told, auth="keys"))

    @classmethod
    def of(cls, config_path: Path) -> "Machine":
        """The one of that file."""
        made = cls.__new__(cls)
        made.folder, made.config_path = config_path.parent, config_path
        return made

    @property
    def cell(self) -> Cell:
        return Cell(load(self.config_path), self.config_path)

    @property
    def layout(self) -> Layout:
        return self.cell.layout

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "ZIMAGE_CONFIG": str(self.config_path)}
        return command_line.zimage(arguments, environment)

    def zimage(self, *arguments: str) -> str:
        """What it printed; it must be done."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def refused(self, *arguments: str) -> str:
        """Why it was not done."""
        done = self.run(*arguments)
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stderr

    @contextmanager
    def inviting(self, name: str, *options: str) -> Iterator["Inviting"]:
        """``zimage hosts invite``, which waits."""
        words = ("hosts", "invite", name, "--door", f"127.0.0.1:{free_port()}", *options)
        environment = {**os.environ, "ZIMAGE_CONFIG": str(self.config_path)}
        with command_line.started(words, environment) as command:
            wait_until(lambda: "\n" in command.said() or not command.runs, "invited")
            yield Inviting(command)


class Inviting:
    def __init__(self, command: command_line.Command) -> None:
        self._command, self.token = command, command.said().strip()

    def end(self) -> tuple[int, str]:
        """Its exit code, and what it told the person."""
        return self._command.wait(60), self.told()

    def told(self) -> str:
        return self._command.complained()

    def interrupt(self) -> None:
        self._command.send_signal(signal.SIGINT)
