"""From a second bare machine to a picture drawn there, with one command."""

import contextlib
import os
import shutil
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

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
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
    """``cluster.toml`` of a machine that has joined, and what was said."""
    folder = Path(tempfile.mkdtemp(prefix="zc-", dir="/tmp"))
    path = folder / "cluster.toml"
    port, ops_port = free_ports(2)
    path.write_text(BARE.format(folder=folder, port=port, ops_port=ops_port))
    command = [sys.executable, "-m", "deploy.cli.app", "up", "--join", "-"]
    command += ["--config", str(path), "--address", f"127.0.0.1:{free_port()}"]
    try:
        with first.inviting("gpu2") as inviting:
            done = subprocess.run(
                command, cwd=ROOT, input=f"{inviting.token}\n", capture_output=True, text=True,
                timeout=120, env={**os.environ, "COLUMNS": "200"},
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr + inviting.told()
            assert inviting.end()[0] == 0
        yield path, done.stdout
    finally:
        Machine.of(path).run("down")
        shutil.rmtree(folder, ignore_errors=True)


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
