"""A platform of the chart's own pods, as processes: `scripts/prove chart`.

What the pods run, with which environment, volumes, user, probes and hooks, is what the chart
renders. No kubelet runs them: tests/cluster/pods.py says what takes its place."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.config import ROOT
from loadtest.cluster.load import Load
from loadtest.cluster.network import Network, network
from loadtest.cluster.object_store import PORTS, ObjectStore
from loadtest.cluster.postgres import Server
from loadtest.traffic import check_picture
from loadtest.waiting import until
from tests.cluster.pods import PROGRAMS, Objects, Pod
from tests.deploy.chart.rendering import (
    PLATFORM,
    Document,
    Values,
    documents,
    merged,
    one,
    pod,
)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.skipif("PROVE" not in os.environ, reason="minutes: scripts/prove chart"),
    pytest.mark.skipif(os.getuid() != 0, reason="namespaces are made by root"),
    pytest.mark.skipif(not all(map(shutil.which, PROGRAMS)), reason=f"needs {', '.join(PROGRAMS)}"),
]

PORT, METRICS_PORT = 7860, 9464
MACHINES = ("cell0", "cell1", "cell2", "front", "job", "lone", "db", "s3")
CELLS = ("zimage-cell-0", "zimage-cell-1")
FRONT = "zimage-front-7d9c8b6f5d-x7k2p"
JOB = "zimage-renewal-29000000-abcde"
_PASSWORD = "only for proofs"
_HBA = """
local all all trust
host all all 10.77.0.0/24 scram-sha-256
"""


@dataclass
class Kubernetes:
    """What there is of one."""

    folder: Path
    net: Network
    documents: list[Document]
    objects: Objects
    key: str
    pods: dict[str, Pod] = field(default_factory=dict)
    """The last one of each name."""
    every: list[Pod] = field(default_factory=list)

    def end(self) -> None:
        for each in self.every:
            each.kill()

    def make(self, name: str, role: str, machine: str) -> Pod:
        """A pod of the StatefulSet or Deployment; one of the same name finds its claim again."""
        own = self.folder / f"{name}-{machine}"
        claim = self.folder / "claims" / name
        spec = pod(self.documents, role)
        self.pods[name] = Pod(name, spec, self.objects, self.net[machine], own, claim)
        self.every.append(self.pods[name])
        return self.pods[name]

    @property
    def front(self) -> Pod:
        return self.pods[FRONT]

    def load(self) -> Load:
        url = f"http://{self.front.machine.address}:{PORT}"
        return Load(url, self.key, waiting=6, following=2)

    def hosts(self) -> dict[str, dict[str, Any]]:
        """As whoever looks at the front sees them."""
        told = self.front.exec("zimage", "hosts", "--json", may_fail=True)
        return {host["id"]: host for host in json.loads(told)["hosts"]}

    def in_pool(self) -> set[str]:
        """The hosts that the front sends requests to, as far as it says anything yet."""
        try:
            said = httpx.get(f"http://{self.front.machine.address}:{PORT}/cell.json", timeout=5)
            hosts = said.json().get("hosts", ())
        except (httpx.HTTPError, ValueError):
            return set()
        return {host["name"] for host in hosts if host["open"]}

    def wait_in_pool(self, *names: str) -> None:
        until(lambda: self.in_pool() == set(names), 60.0, f"in the pool: {names}", 0.2)


def values(database: str, endpoint: str) -> Values:
    return merged(
        PLATFORM,
        {
            "database": {"url": f"postgresql://zimage@{database}/zimage"},
            "objects": {"url": "s3://pictures/studio", "endpoint": endpoint},
            "monitoring": {"enabled": True},
            "preStopSeconds": 2,
            "config": {
                "model": {"source": "synthetic:step_ms=20"},
                "workers": [{"device": "cpu", "count": 2, "threads": 1}],
                "nginx": {
                    "worker_processes": 1,
                    "max_connections_per_address": 0,
                    "max_requests_per_s_per_address": 0,
                },
            },
        },
    )


def authority(folder: Path) -> dict[str, bytes]:
    """What `zimage cluster authority` makes, as docs/install.md puts it into a Secret."""
    command = [sys.executable, "-m", "deploy.cli.app", "cluster", "authority", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60, stdout=subprocess.DEVNULL)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def kubernetes() -> Iterator[Kubernetes]:
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="zi-", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        net = stack.enter_context(network(*MACHINES))
        (folder / "db").mkdir()
        listen = f"listen_addresses={net['db'].address}"
        options = (listen, "max_connections=200", "fsync=off")
        database = Server(folder / "db", *options, within=net["db"].prefix).create()
        (database.data / "pg_hba.conf").write_text(_HBA, "utf-8")
        stack.callback(database.stop)
        database.start()
        with database.connect() as admin:
            admin.execute(f"ALTER ROLE zimage PASSWORD '{_PASSWORD}'")
            admin.execute("CREATE DATABASE zimage")
        s3 = net["s3"]
        store = ObjectStore(folder / "s3", range(8333, 8333 + PORTS), s3.address, s3.prefix)
        stack.callback(store.kill)
        store.start()
        key = f"zimage_{secrets.token_urlsafe(32)}"
        found = documents(values(net["db"].address, store.endpoint))
        given = {
            "cluster": authority(folder / "authority"),
            "keys": {"zimage-key": f"{key}\n".encode()},
            "database": {"password": _PASSWORD.encode()},
            "bucket": {"credentials": store.credentials.read_bytes()},
        }
        made = Kubernetes(folder, net, found, Objects.of(found, given), key)
        stack.callback(made.end)
        for name, machine in zip(CELLS, ("cell0", "cell1"), strict=True):
            made.make(name, "cell", machine).start()
        made.make(FRONT, "front", "front").start()
        for each in made.pods.values():
            each.wait_ready()
        made.wait_in_pool(*CELLS)
        yield made


def test_pods_draw_and_survive_the_loss_of_one(kubernetes: Kubernetes) -> None:
    cell = kubernetes.pods[CELLS[0]]
    with kubernetes.load().running() as load:
        load.until_answered(40)
        assert cell.probe("readinessProbe")  # busy is ready
        assert cell.probe("livenessProbe")

        kubernetes.pods[CELLS[1]].lose_power()
        load.until_answered(40)
        kubernetes.wait_in_pool(CELLS[0])
        load.until_answered(20)

        # Under its name, with its volume and another address, as a StatefulSet brings it back.
        again = kubernetes.make(CELLS[1], "cell", "cell2")
        again.start()
        again.wait_ready()
        kubernetes.wait_in_pool(*CELLS)
        load.until_answered(40)
    assert load.lost == [], cell.log()
    assert len(load.answers_by_worker) >= 2


def test_containers_have_no_more_than_their_volumes(kubernetes: Kubernetes) -> None:
    cell = kubernetes.pods[CELLS[0]]
    assert cell.exec("id", "-u").strip() == "7860"
    assert "Read-only file system" in cell.exec("touch", "/opt/mark", may_fail=True)
    assert "Read-only file system" in cell.exec("touch", "/etc/zimage/mark", may_fail=True)
    cell.exec("touch", "/tmp/mark", "/var/lib/zimage/mark", "/run/zimage/mark")
    assert "No such file" in cell.exec("ls", "/run/secrets/authority", may_fail=True)
    state = kubernetes.folder / "claims" / CELLS[0] / "cluster"
    assert (state / "host.key").exists()
    assert not (state / "ca.key").exists()


def test_prometheus_reads_what_it_is_told_to_and_no_more(kubernetes: Kubernetes) -> None:
    for role, name in (("cell", CELLS[0]), ("front", FRONT)):
        base = f"http://{kubernetes.pods[name].machine.address}:{METRICS_PORT}"
        monitor = one(kubernetes.documents, "ServiceMonitor", f"zimage-{role}")
        for endpoint in monitor["spec"]["endpoints"]:
            answer = httpx.get(base + endpoint["path"], timeout=10)
            assert answer.status_code == 200, endpoint
            assert "# TYPE" in answer.text
        for path in ("/", "/ops/", "/cell.json", "/guard/metrics/../../cell.json"):
            assert httpx.get(base + path, timeout=10).status_code == 404
        assert httpx.post(base + "/guard/metrics", timeout=10).status_code == 403


def test_certificates_are_signed_by_a_job(kubernetes: Kubernetes) -> None:
    job = one(kubernetes.documents, "CronJob", "zimage-renewal")["spec"]["jobTemplate"]
    spec = job["spec"]["template"]["spec"]
    folder = kubernetes.folder / JOB
    run = Pod(JOB, spec, kubernetes.objects, kubernetes.net["job"], folder, folder / "claim")
    assert "certificates signed: 0" in run.run()


def test_a_pod_ends_in_its_grace_and_leaves_nobody_behind(kubernetes: Kubernetes) -> None:
    cell = kubernetes.pods[CELLS[0]]
    with kubernetes.load().running() as load:
        load.until_answered(20)
        took_s = cell.end()
        load.until_answered(20)
    assert load.lost == []
    assert took_s < cell.spec["terminationGracePeriodSeconds"]
    assert "the cell has ended" in cell.log()
    assert CELLS[0] not in kubernetes.hosts()
    assert not cell.machine.pids()

    kubernetes.front.end()
    left = kubernetes.pods[CELLS[1]].exec("zimage", "hosts", "--json", may_fail=True)
    assert [host["id"] for host in json.loads(left)["hosts"]] == [CELLS[1]]


def test_the_default_pod_draws_with_the_key_that_it_prints(kubernetes: Kubernetes) -> None:
    """With no value, no Secret and no database; and its probes say what its states mean."""
    found = documents()
    folder, machine = kubernetes.folder / "lone", kubernetes.net["lone"]
    own = pod(found, "cell"), Objects.of(found, {})
    lone = Pod(CELLS[0], *own, machine, folder, kubernetes.folder / "claims" / "lone")
    kubernetes.every.append(lone)
    lone.start()
    assert not lone.probe("startupProbe")  # loading
    lone.wait_ready()
    [key] = re.findall(r"\bzimage_[\w-]{43}\b", lone.log())
    answer = httpx.post(
        f"http://{machine.address}:{PORT}/v1/images/generations",
        json={"prompt": "a large red circle on a white background", "size": "256x256"},
        headers={"Authorization": f"Bearer {key}"},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    assert check_picture(answer.json()["data"][0], {"size": "256x256"}, synthetic=False) == ""

    lone.exec("zimage", "drain", "w1")  # one worker less is none less for those who come
    assert lone.probe("readinessProbe")
    lone.exec("zimage", "drain", "w2")
    lone.exec("zimage", "drain", "w3")
    assert not lone.probe("readinessProbe")  # draining
    assert lone.probe("livenessProbe")
    lone.exec("zimage", "undrain", "w1")
    until(lambda: lone.probe("readinessProbe"), 30.0, "ready again", 0.2)

    lone.exec("sh", "-c", "kill -KILL $(cat /var/lib/zimage/state/supervisord.pid)")  # dead
    assert lone.running["zimage"].wait(60) == 1  # and a kubelet starts the container again
