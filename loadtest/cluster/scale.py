"""What one real front bears: 1 to 100 hosts that only answer, each with as many clients as it has
workers, twice.

Throughput against what the hosts could draw, waits, how evenly they draw, and the front's CPU.
"""

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from cryptography.hazmat.primitives.serialization import Encoding

from deploy import output
from deploy.cluster import authority
from deploy.cluster.certificates import new_request
from deploy.config import ROOT
from loadtest.cluster.ghosts import Ghost, Settings
from loadtest.cluster.machines import PORT, Machine, until
from loadtest.cluster.platform import Platform

HOSTS = (1, 3, 10, 30, 100)
WORKERS = 8
DRAW_S = 2.0
CLIENTS_A_WORKER = 2
_LOAD_S = 20
_FIRST_ADDRESS = 101
_LUA = """
wrk.method = "POST"
wrk.body = '{"prompt": "a ghost", "size": "64x64"}'
wrk.headers["Content-Type"] = "application/json"
"""


@dataclass(frozen=True)
class Measured:
    """With ``hosts``. ``efficiency``: of what they could draw; ``spread``: most over least drawn
    by a host; ``cpu_ms``: of the front's nginx and links, a request."""

    hosts: int
    answers: int
    failed: int
    per_s: float
    efficiency: float
    p50_s: float
    p99_s: float
    spread: float
    cpu_ms: float


def measure(on: Platform, machine: str = "ghosts") -> list[Measured]:
    """One after the other, each with ghosts of its own on ``machine``."""
    found = []
    for count in HOSTS:
        found.append(_one(on, machine, count))
        output.say(_told(found[-1]))
    return found


def _told(seen: Measured) -> str:
    return (
        f"{seen.hosts:4} hosts: {seen.per_s:6.1f} answers/s ({seen.efficiency:.0%} of what they "
        f"draw), {seen.failed} of {seen.answers} failed, p50 {seen.p50_s:.2f} s, p99 "
        f"{seen.p99_s:.2f} s, most over least {seen.spread:.2f}, {seen.cpu_ms:.2f} ms of CPU"
    )


def _one(on: Platform, machine: str, count: int) -> Measured:
    front = on.first
    with _ghosts(on, machine, count) as counts:
        until(lambda: _known(front) >= count, 60.0, f"the front knows {count} ghosts")
        front.up("--no-draw")  # eight hosts may join without it: here is a link for each
        until(lambda: len(front.in_pool()) == count, 120.0, f"{count} ghosts in the pool")
        before = _cpu_s(front)
        told = _load(on, count * WORKERS * CLIENTS_A_WORKER)
        cpu_s = _cpu_s(front) - before
    drawn = list(json.loads(counts.read_text(encoding="utf-8")).values())
    answers, failed = _number(r"(\d+) requests in", told), _number(r"Non-2xx.*: (\d+)", told)
    per_s = (answers - failed) / _LOAD_S
    return Measured(
        count,
        int(answers),
        int(failed),
        per_s,
        per_s / (count * WORKERS / DRAW_S),
        _seconds("50%", told),
        _seconds("99%", told),
        max(drawn) / max(1, min(drawn)),
        cpu_s / max(1.0, answers) * 1e3,
    )


def _known(front: Machine) -> int:
    hosts = json.loads(front.layout.hosts_json.read_text(encoding="utf-8"))["hosts"]
    return sum(host["role"] != "front" for host in hosts)


def _load(on: Platform, clients: int) -> str:
    script = on.folder / "ghosts.lua"
    script.write_text(_LUA, encoding="utf-8")
    url = f"http://{on.first.address}:{PORT}/v1/images/generations"
    command = ["wrk", "-t1", f"-c{clients}", f"-d{_LOAD_S}", "--timeout", "60", "--latency"]
    done = subprocess.run(
        [*command, "-s", str(script), url], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


@contextlib.contextmanager
def _ghosts(on: Platform, machine: str, count: int) -> Iterator[Path]:
    """Where they leave their counts, once they have ended."""
    namespace = on.net[machine]
    folder = on.folder / f"{machine}-{count}"
    folder.mkdir()
    addresses = [f"10.77.0.{_FIRST_ADDRESS + n}" for n in range(count)]
    for address in addresses:
        with contextlib.suppress(RuntimeError):  # it has it from the round before
            namespace.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
    settings = _settings(on, folder, addresses)
    path = folder / "settings.json"
    path.write_text(settings.model_dump_json(), encoding="utf-8")
    command = [*namespace.prefix, sys.executable, "-m", "loadtest.cluster.ghosts", str(path)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            yield settings.counts
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    with on.database.primary.connect("zimage") as admin:
        admin.execute("DELETE FROM hosts WHERE id LIKE 'ghost%'")
    until(lambda: not on.first.in_pool(), 90.0, "the ghosts out of the pool")


def _settings(on: Platform, folder: Path, addresses: Sequence[str]) -> Settings:
    layout = on.first.layout
    request = new_request("ghosts")
    signed = authority.load(layout)[0].sign(request.csr, "ghosts", "host")
    (folder / "host.crt").write_bytes(signed.public_bytes(Encoding.PEM))
    (folder / "host.key").write_bytes(request.key)
    return Settings(
        ghosts=[
            Ghost(name=f"ghost{n}", address=address, workers=WORKERS, draw_s=DRAW_S)
            for n, address in enumerate(addresses)
        ],
        database_url=f"{on.database.url}&password_file={on.database.password_file}",
        certificate=folder / "host.crt",
        key=folder / "host.key",
        authority=layout.authority_certificate,
        counts=folder / "counts.json",
    )


def _cpu_s(front: Machine) -> float:
    """Of every nginx in its namespace: front and links."""
    total = 0.0
    for pid in front.namespace.pids():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.name() == "nginx":
                times = process.cpu_times()
                total += times.user + times.system
    return total


def _number(pattern: str, told: str) -> float:
    found = re.search(pattern, told)
    return float(found[1]) if found else 0.0


def _seconds(share: str, told: str) -> float:
    found = re.search(rf"{re.escape(share)}\s+([\d.]+)(us|ms|s|m)", told)
    if found is None:
        return float("nan")
    return float(found[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}[found[2]]
