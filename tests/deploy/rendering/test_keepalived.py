"""Real keepalived on two machines of a network: the address goes where hosts answer."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.config import parse
from deploy.layout import Layout
from deploy.rendering.plan import plan
from deploy.rendering.render import render
from loadtest.cluster.network import Namespace, NoNetwork, network
from tests.deploy.processes import wait_until
from tests.deploy.rendering.test_render import CPU, HOST

ADDRESS = "10.77.0.100/24"
CONFIG = {
    "cluster": {"name": "studio", "role": "front"},
    "front": {"virtual_address": ADDRESS, "interface": "eth0"},
    "database": {"url": "postgresql://db1/zimage"},
    "objects": {"url": "s3://pictures/a", "endpoint": "http://s3:9000", "credentials_file": "key"},
}
SERVER = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status = open(sys.argv[1]).read() if self.path == "/readyz" else "200"
        self.send_response(int(status)); self.end_headers()
    def log_message(self, *_): ...
http.server.ThreadingHTTPServer(("127.0.0.1", 7861), Answer).serve_forever()
"""
pytestmark = pytest.mark.xdist_group("network")


def rendered(var_dir: Path, **changes: object) -> dict[str, str]:
    config = parse({**CONFIG, **changes})
    layout = Layout(var_dir, var_dir / "run")
    host = replace(HOST, user="root", lasting_python=sys.executable)
    return render(config, plan(config, CPU), layout, host)


class Front:
    """What keepalived sees of one: nginx's port, and whether a host takes requests."""

    def __init__(self, machine: Namespace, folder: Path) -> None:
        folder.mkdir()
        self._machine = machine
        self._status = folder / "status"
        self.hosts_answer(200)
        for name, text in rendered(folder).items():
            if name.startswith("keepalived/"):
                (folder / "render" / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / "render" / name).write_text(text)
        pids = [f"--pid={folder}/pid", f"--vrrp_pid={folder}/vrrp", f"--checkers_pid={folder}/c"]
        conf = folder / "render/keepalived/keepalived.conf"
        self.nginx = subprocess.Popen(
            [*machine.prefix, sys.executable, "-c", SERVER, str(self._status)]
        )
        self._log = (folder / "log").open("ab")
        self._keepalived = subprocess.Popen(
            [*machine.prefix, "keepalived", "-n", "-l", "-f", str(conf), *pids],
            stdout=self._log,
            stderr=self._log,
        )

    def wait(self) -> None:
        """Until both processes, which the network kills, have ended."""
        self.nginx.wait(10)
        self._keepalived.wait(10)
        self._log.close()

    def hosts_answer(self, status: int) -> None:
        self._status.write_text(str(status))

    def has_address(self) -> bool:
        return ADDRESS in self._machine.run("ip", "-o", "address", "show", "eth0")


@pytest.fixture
def fronts(tmp_path: Path) -> Iterator[tuple[Front, Front]]:
    if shutil.which("keepalived") is None:
        pytest.skip("no keepalived is installed here; scripts/env --test does it")
    try:
        with network("f1", "f2") as net:
            made = Front(net["f1"], tmp_path / "f1"), Front(net["f2"], tmp_path / "f2")
            yield made
    except NoNetwork as problem:
        pytest.skip(str(problem))
    for front in made:
        front.wait()


def test_the_address_goes_to_the_front_that_finds_hosts(fronts: tuple[Front, Front]) -> None:
    wait_until(lambda: sum(f.has_address() for f in fronts) == 1, "one has the address")
    first, second = fronts if fronts[0].has_address() else fronts[::-1]
    first.hosts_answer(503)
    wait_until(lambda: second.has_address() and not first.has_address(), "the other has it")
    second.hosts_answer(503)
    first.hosts_answer(200)
    wait_until(lambda: first.has_address() and not second.has_address(), "it is back")
    first.nginx.kill()
    second.hosts_answer(503)
    wait_until(lambda: second.has_address() and not first.has_address(), "a live nginx has it")


def test_one_host_has_no_keepalived(tmp_path: Path) -> None:
    alone: dict[str, object] = {key: {} for key in CONFIG}
    assert not [name for name in rendered(tmp_path, **alone) if "keepalived" in name]
