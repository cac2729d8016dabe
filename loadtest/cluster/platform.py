"""A whole cluster on this machine: two databases, a store, fronts that share an address, hosts."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx

from deploy import output
from deploy.rollout.releases import Releases
from loadtest.cluster.database_pair import DatabasePair
from loadtest.cluster.load import Load
from loadtest.cluster.machines import OPS_PORT, PORT, Machine, until
from loadtest.cluster.network import Network, network
from loadtest.cluster.object_store import BUCKET, PORTS, ObjectStore
from loadtest.cluster.wheels import FIRST, Wheels, install

ADDRESS = "10.77.0.100"
"""That fronts share."""
CLUSTER = "studio"
HOST_PORT = 7862
MODEL = "synthetic:step_ms=20"
QUEUED = "max_queued_requests = 16"
WORKERS = 2
_USERS_A_WORKER = 10
"""Who wait, beside those who follow steps: together fewer than wait at one worker at most."""
FRONTS, HOSTS = ("f1", "f2"), ("a", "b", "c")
JOINING = "d"
"""A host that joins later."""

_STORE_PORTS = range(8333, 8333 + PORTS)

BASE = """
[cell]
name = "{name}"
var_dir = "{var_dir}"
user = "{user}"
[listen]
address = "0.0.0.0"
port = {port}
auth = "keys"
[ops]
port = {ops_port}
[model]
source = "{model}"
[guard]
max_kills_per_minute = 1000
[nginx]
worker_processes = 1
max_connections_per_address = 0
max_requests_per_s_per_address = 0
"""
CELL = """
[limits.worker]
{queued}
[[workers]]
device = "cpu"
count = {workers}
threads = 1
"""
SHARED = """
[database]
url = "{database}"
password_file = "{password_file}"
[objects]
url = "s3://{bucket}/studio"
endpoint = "{endpoint}"
credentials_file = "{credentials}"
[cluster]
name = "{cluster}"
host = "{name}"
role = "front"
"""
FRONT = """
[front]
virtual_address = "{address}/24"
interface = "eth0"
"""


@dataclass
class Platform:
    folder: Path
    net: Network
    database: DatabasePair
    store: ObjectStore
    wheels: Wheels | None = None
    """Machines run releases that are made of them; without them the checkout that plays."""
    workers: int = WORKERS
    fronts: dict[str, Machine] = field(default_factory=dict)
    hosts: dict[str, Machine] = field(default_factory=dict)
    key: str = ""
    _keepalived: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def first(self) -> Machine:
        """Where the authority's key lies."""
        return next(iter(self.fronts.values()))

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{PORT}"

    def start(self, fronts: Sequence[str], hosts: Sequence[str]) -> None:
        self.database.start()
        self.store.start()
        self._found(fronts[0])
        for name in fronts[1:]:
            self.join(name, "front")
        for name in hosts:
            self.join(name, "host")
        for name in fronts:
            self.share_the_address(name)
        self.key = self.make_key("proof", "--role", "ops")
        until(lambda: self.first.in_pool() == set(hosts), 60.0, "every host in the pool")

    def make_key(self, name: str, *options: str) -> str:
        """A new one, which every host knows."""
        told = self.first.zimage("keys", "create", name, *options)
        key = next(word for word in told.split() if word.startswith("zimage_"))
        known = partial(self._knows, key)
        until(lambda: all(map(known, self.hosts.values())), 30.0, f"the key of {name} known")
        return key

    def load(self) -> Load:
        draw = len(self.hosts) * self.workers
        alone = _USERS_A_WORKER * self.workers  # the last host of all has room for everybody
        return Load(self.url, self.key, waiting=min(16, 3 * draw, alone), following=min(4, draw))

    def front_with_the_address(self) -> Machine:
        """The one that clients reach now."""
        for front in self.fronts.values():
            if f"{ADDRESS}/24" in front.namespace.run("ip", "-o", "address", "show", "eth0"):
                return front
        raise LookupError(f"no front has {ADDRESS}")

    def join(self, name: str, role: str) -> Machine:
        """Invite it, and start it there with what the invitation says."""
        output.say(f"› {name} joins as {role}")
        text = self._base(name)
        if role == "front":
            text += FRONT.format(address=ADDRESS)
        else:
            text += CELL.format(workers=self.workers, queued=QUEUED)
        machine = self._machine(name, text)
        (self.fronts if role == "front" else self.hosts)[name] = machine
        with self.first.inviting(name, role) as token:
            machine.up("--join", "-", told=f"{token}\n")
        return machine

    def share_the_address(self, name: str) -> None:
        """Start keepalived on front ``name``, with what ``zimage up`` has rendered."""
        machine = self.fronts[name]
        folder = machine.folder / "keepalived"
        folder.mkdir(exist_ok=True)
        conf = machine.folder / "var" / "render" / "keepalived" / "keepalived.conf"
        pids = [f"--pid={folder}/pid", f"--vrrp_pid={folder}/vrrp", f"--checkers_pid={folder}/c"]
        command = [*machine.namespace.prefix, "keepalived", "-n", "-l", "-f", str(conf), *pids]
        with (folder / "log").open("ab") as log:
            self._keepalived.append(subprocess.Popen(command, stdout=log, stderr=log))

    def end(self) -> None:
        for machine in (*self.hosts.values(), *self.fronts.values()):
            machine.namespace.kill_all()
        for process in self._keepalived:
            process.wait(10)
        self.store.kill()
        self.database.stop()

    def _machine(self, name: str, text: str) -> Machine:
        machine = Machine(name, self.net[name], self.folder / name, text)
        if self.wheels is not None:
            install(Releases(machine.folder), self.wheels[FIRST], FIRST)
            self.wheels.be_found_from(machine.folder)
            machine.environment["HOME"] = str(machine.folder)
        return machine

    def _base(self, name: str) -> str:
        var_dir = self.folder / name / "var"
        ports = {"port": PORT, "ops_port": OPS_PORT}
        # A cell upgrades itself only where its user may write releases.
        user = "root" if self.wheels is not None else ""
        return BASE.format(name=name, var_dir=var_dir, user=user, model=MODEL, **ports)

    def _knows(self, key: str, host: Machine) -> bool:
        """Each learns of a new one within a second; until then it refuses it."""
        headers = {"Authorization": f"Bearer {key}"}
        url = f"http://{host.address}:{PORT}/v1/models"
        try:
            return httpx.get(url, headers=headers, timeout=5.0).status_code == 200
        except httpx.HTTPError:
            return False

    def _found(self, name: str) -> None:
        output.say(f"› {name} founds the cluster")
        text = self._base(name)
        text += SHARED.format(
            name=name,
            cluster=CLUSTER,
            database=self.database.url,
            password_file=self.database.password_file,
            bucket=BUCKET,
            endpoint=self.store.endpoint,
            credentials=self.store.credentials,
        )
        text += FRONT.format(address=ADDRESS)
        machine = self._machine(name, text)
        self.fronts[name] = machine
        machine.zimage("cluster", "init")
        machine.up()


@contextmanager
def platform(
    fronts: Sequence[str] = FRONTS,
    hosts: Sequence[str] = HOSTS,
    more: Sequence[str] = (),
    releases: bool = False,
    workers: int = WORKERS,
) -> Iterator[Platform]:
    """All of it, ready to draw; ``more`` are machines that may join later. ``releases``: each has
    an installation of its own, which can be upgraded. Nothing is left."""
    folder = Path(tempfile.mkdtemp(prefix="zi-", dir="/tmp"))
    folder.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        net = stack.enter_context(network(*fronts, *hosts, "db1", "db2", "s3", *more))
        database = DatabasePair(folder / "db", net["db1"], net["db2"])
        s3 = net["s3"]
        store = ObjectStore(folder / "s3", _STORE_PORTS, s3.address, s3.prefix)
        wheels = Wheels(folder / "wheels") if releases else None
        made = Platform(folder, net, database, store, wheels, workers)
        stack.callback(made.end)
        made.start(fronts, hosts)
        yield made
