"""From a second bare machine to a picture drawn there, with one command."""

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deploy import store
from deploy.config import ROOT
from tests.cluster.conftest import RunningCell, ended
from tests.cluster.test_keys import bearer, make
from tests.deploy.cluster.machines import Machine
from tests.deploy.processes import wait_until
from tests.object_store import ObjectStore
from tests.ports import free_port, free_ports
from tests.postgres import Server
from worker.storage import hosts

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.long]
BARE = """
[cell]
name = "second"
var_dir = "{folder}/var"
[listen]
port = {port}
[ops]
port = {ops_port}
[[workers]]
device = "cpu"
threads = 1
"""


@pytest.fixture
def first(postgres: Server, object_store: ObjectStore) -> Iterator[RunningCell]:
    """One machine alone that becomes the first of a cluster while it runs, with its keys."""
    folder = Path(tempfile.mkdtemp(prefix="zc-", dir="/tmp"))
    with postgres.database("joined") as url:
        objects = object_store.objects("joined").model_dump()
        more = "\n".join(f"{key} = {value!r}" for key, value in objects.items())
        shared = f'[database]\nurl = "{url}"\n[objects]\n{more}\n'
        cell = RunningCell(folder, name="first", auth="keys", workers=1, more=shared)
        with ended(cell, folder):
            cell.up()
            yield cell


def become_first(cell: RunningCell) -> Machine:
    with cell.config_path.open("a") as file:
        file.write('[cluster]\nname = "studio"\nhost = "gpu1"\nrole = "both"\n')
        file.write(f'address = "127.0.0.1:{free_port()}"\n')
    done = cell.zimage("cluster", "init")
    assert done.returncode == 0, done.stdout + done.stderr
    cell.up()
    return Machine.of(cell.config_path)


@contextlib.contextmanager
def second(first: Machine) -> Iterator[tuple[Path, str]]:
    """``cluster.toml`` of a machine that has joined by one line in a shell of the first one, as the
    documents have it, and what was said."""
    folder = Path(tempfile.mkdtemp(prefix="zc-", dir="/tmp"))
    path = folder / "cluster.toml"
    port, ops_port = free_ports(2)
    path.write_text(BARE.format(folder=folder, port=port, ops_port=ops_port))
    zimage = f"{shlex.quote(sys.executable)} -m deploy.cli.app"
    invite = f"{zimage} hosts invite gpu2 --door 127.0.0.1:{free_port()}"
    up = f"{zimage} up --join - --config {path} --address 127.0.0.1:{free_port()}"
    there = shlex.quote(f"cd {shlex.quote(str(ROOT))} && COLUMNS=200 {up}")
    try:
        with remote_shell(folder) as ssh:
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", f"{invite} | tee {folder}/token | {ssh} {there}"],
                cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200,
                env={**os.environ, "ZIMAGE_CONFIG": str(first.config_path), "COLUMNS": "200"},
            )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        token = (folder / "token").read_text().strip()
        assert token.startswith("zimage-join.")
        assert token not in done.stdout + done.stderr
        assert "gpu2 has joined studio as host" in done.stderr
        yield path, done.stdout
    finally:
        Machine.of(path).run("down")
        shutil.rmtree(folder, ignore_errors=True)


SSHD = """
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
StrictModes no
UsePAM no
PidFile none
"""


@contextlib.contextmanager
def remote_shell(folder: Path) -> Iterator[str]:
    """What a command on another machine begins with: ssh to a server of its own, or where none is
    installed a shell here."""
    sshd = shutil.which("sshd", path="/usr/sbin")
    if sshd is None:
        yield "sh -c"
        return
    port = free_port()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-N", "", "-f", folder / name], check=True, timeout=60)
    (folder / "sshd").write_text(SSHD.format(port=port, folder=folder))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # it asks for one
    command = [sshd, "-D", "-e", "-f", str(folder / "sshd")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: listens(port) or server.poll() is not None, "sshd")
            options = "-o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
            yield f"ssh -q {options} -i {folder}/user -p {port} 127.0.0.1"
        finally:
            server.terminate()


def listens(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def open_hosts(front: RunningCell) -> set[str]:
    """Those that the front's guard lets in."""
    return {host["name"] for host in front.state().get("hosts", ()) if host["open"]}


def test_second_machine_draws_after_one_command(first: RunningCell) -> None:
    token = make(first, "ada")
    machine = become_first(first)
    with second(machine) as (path, said):
        assert "joined studio" in said
        assert "drew" in said  # a picture there, through its own nginx
        other = Machine.of(path)
        url = f"http://127.0.0.1:{other.cell.config.listen.port}"
        drawn(url, token)  # a host can be used directly, with the keys of the first
        wait_until(lambda: open_hosts(first) == {"gpu1", "gpu2"}, "the front lets both in")
        done = first.zimage("hosts", "drain", "gpu1")  # whoever draws now is the second
        assert done.returncode == 0, done.stdout + done.stderr
        drawn(first.url, token)
        known = {host.id for host in store.run(other.cell, hosts.read_all)}
        assert known == {"gpu1", "gpu2"}


def drawn(url: str, token: str) -> None:
    body = {"prompt": "a fox", "size": "64x64"}
    answer = httpx.post(
        f"{url}/v1/images/generations", json=body, headers=bearer(token), timeout=60
    )
    assert answer.status_code == 200, answer.text
