"""What a front adds: its processor time and handshakes a request, and what it does to the median.

A real front and real hosts on 127.0.0.1, as ``zimage up`` renders them: nginx, a link to each host,
the guard's questions, certificates both ways. Workers only wait. Each turn asks the front for
drawings that take ``--draw-s``, and then in short spells, by turns, the front and a host itself for
what takes no time.

``--against CHECKOUT`` runs this same program over the rendering of another checkout, in turns: what
counts are handshakes and the ratio of processor times, for a machine's speed changes from one
minute to the next.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import uvloop

from deploy.cluster import certificates
from deploy.cluster.authority import Authority
from deploy.config import parse
from deploy.guard import host_probe, link_program
from deploy.guard.gate import Gate, make_closed_socket
from deploy.guard.host_watch import HostRow, HostWatch
from deploy.host import machine
from deploy.layout import Layout
from deploy.links import reading
from deploy.rendering.plan import plan
from deploy.rendering.render import Host, render

ROOT = Path(__file__).resolve().parents[2]
PATH = "/v1/images/generations"
WORKERS = 8
_PATIENCE_S = 20.0
_IDLE_TIMEOUT_S = 600
_SPELLS, _SPELL_S = 4, 1.0
_CLIENTS_A_WORKER = 2
_BODY = '{"prompt": "a fox", "size": "64x64"}'
_LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '%s'
done = function(summary, latency, requests)
  local bad = summary.errors.connect + summary.errors.read + summary.errors.write
            + summary.errors.status + summary.errors.timeout
  io.write(string.format("RESULT %%d %%d %%d\\n", summary.requests, bad, latency:percentile(50)))
end
"""


@dataclass(frozen=True)
class Turn:
    """Of drawings: ``handshakes`` a request, ``resumed`` of a session, and the CPU of the front's
    nginx and links in ms, which carry the guard's questions in older checkouts. ``short_``: of
    requests that take no time, one after the other, with the median through the front and at a
    host's own port. ``asking_ms_per_s``: what the guard's questions to all hosts cost the guard."""

    drawings: int
    failed: int
    handshakes: float
    resumed: float
    cpu_ms: float
    asking_ms_per_s: float
    short_cpu_ms: float
    short_p50_ms: float
    direct_p50_ms: float
    short_failed: int

    def __str__(self) -> str:
        return (
            f"{self.drawings:9g} {self.failed + self.short_failed:6g} {self.handshakes:10.2f} "
            f"{self.resumed:7.2f} {self.cpu_ms:7.2f} {self.short_cpu_ms:7.2f} "
            f"{self.short_p50_ms:7.2f} {self.direct_p50_ms:7.2f} {self.asking_ms_per_s:7.1f}"
        )


HEAD = (
    f"{'':8} {'drawings':>9} {'failed':>6} {'handshakes':>10} {'resumed':>7} {'CPU ms':>7} "
    f"{'short':>7} {'p50 ms':>7} {'direct':>7} {'guard':>7}"
)


# The machines, on this one


class Site:
    """The nginx of a front or host, as ``zimage up`` renders it."""

    def __init__(
        self, folder: Path, role: str, authority: Authority, used: dict[str, int] | None = None
    ) -> None:
        self.port, self.cluster_port = free_port(), free_port()
        told = {
            "cell": {"var_dir": str(folder)},
            "listen": {"port": self.port},
            "ops": {"port": free_port()},
            "nginx": {"max_requests_per_s_per_address": 0, "max_connections_per_address": 0},
            "cluster": {"name": "bench", "address": f"127.0.0.1:{self.cluster_port}", "role": role},
            "database": {"url": "postgresql://zimage@/zimage"},
            "objects": {
                "url": "s3://bench/bench",
                "endpoint": "http://127.0.0.1:9",
                "credentials_file": "nowhere",
            },
            "workers": [{"device": "cpu", "threads": 1}],
        }
        if role == "front":
            told.pop("workers")
        config = parse(told)
        self.layout = Layout(folder, folder / "run")
        binary = machine.find_nginx("nginx")
        assert binary is not None, "nginx is missing"
        self.nginx = binary.path
        here = machine.read()
        host = Host.current(binary.path, binary.version, here.cores)
        self.layout.create()
        for name, text in render(config, plan(config, here, used), self.layout, host).items():
            path = self.layout.render_dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_logged(name, text, folder), encoding="utf-8")
        _equip(self.layout, role, authority)
        make_closed_socket(self.layout.closed_socket)

    @contextlib.contextmanager
    def running(self) -> Iterator[psutil.Process]:
        with self.process(self.layout.nginx_conf) as process:
            until(lambda: _listens("127.0.0.1", self.port), "nginx listens")
            yield process

    @contextlib.contextmanager
    def process(self, conf: Path) -> Iterator[psutil.Process]:
        """An nginx of ``conf``, until the block ends."""
        command = [
            str(self.nginx),
            "-p",
            f"{self.layout.var_dir}/",
            "-c",
            str(conf),
            "-e",
            "stderr",
        ]
        process = psutil.Popen(command)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(10)


def _logged(name: str, text: str, folder: Path) -> str:
    """A line for each request of a front: the how manieth of its connection, and its handshake."""
    if name == "conf.d/log.conf":
        return f"{text}\nlog_format bench '$connection_requests $ssl_session_reused';\n"
    if name == "cluster.d/fronts.conf":
        return text.replace("server_name _;", f'server_name _; access_log "{folder}/bench" bench;')
    return text


def _equip(layout: Layout, role: str, authority: Authority) -> None:
    layout.cluster_dir.mkdir(parents=True, exist_ok=True)
    layout.authority_certificate.write_bytes(authority.pem)
    layout.revocation_list.write_bytes(authority.revocation_list({}))
    for each in certificates.roles_of(role):
        request = certificates.pending(layout, each, each)
        signed = authority.sign(request.csr, each, each)
        certificates.install(layout, each, certificates.pem(signed))


@contextlib.contextmanager
def cluster(folder: Path, hosts: int) -> Iterator["Cluster"]:
    authority = Authority.make("bench")
    used = {f"h{n}": WORKERS for n in range(1, hosts + 1)}
    entry = Site(folder / "front", "front", authority, used)
    with contextlib.ExitStack() as running:
        sites = [Site(folder / f"h{n}", "host", authority) for n in range(1, hosts + 1)]
        workers = [site.layout.gate("w1") for site in sites]
        draw_s = multiprocessing.Value("d", 0.0)
        running.enter_context(_child(_work, workers, draw_s))
        for site in sites:
            running.enter_context(site.running())
        processes = [running.enter_context(entry.running())]
        for number, site in enumerate(sites, start=1):
            processes.append(running.enter_context(_link(entry, f"h{number}", site)))
        for path in _gates(entry.layout, [f"h{n}" for n in range(hosts + 1, hosts + 9)]):
            path.close()
        addresses = [f"127.0.0.1:{site.cluster_port}" for site in sites]
        guard = running.enter_context(_child(_ask, entry.layout, addresses))
        yield Cluster(entry, sites, processes, psutil.Process(guard.pid), draw_s)


@contextlib.contextmanager
def _link(entry: Site, name: str, host: Site) -> Iterator[psutil.Process]:
    layout = entry.layout
    layout.links_dir.mkdir(exist_ok=True)
    address = f"127.0.0.1:{host.cluster_port}"
    text = _link_configuration(entry, name, address)
    layout.link_conf(name).write_text(text, encoding="utf-8")
    with entry.process(layout.link_conf(name)) as process:
        until(lambda: layout.link_socket(name).is_socket(), "link listens")
        for gate in _gates(layout, [name]):
            gate.open()
        yield process


def _gates(layout: Layout, names: Sequence[str]) -> list[Gate]:
    return [
        Gate(layout.gate(gate), _entrance(layout, name), layout.closed_socket)
        for name in names
        for gate in (name, reading(name))
    ]


def _entrance(layout: Layout, name: str) -> Path:
    """Where a gate leads. In older checkouts links carry nginx's own connections, and those that it
    keeps are behind a socket of its own."""
    return getattr(layout, "link_entrance", layout.link_socket)(name)


def _link_configuration(entry: Site, name: str, address: str) -> str:
    make: Callable[..., str] = link_program.configuration
    stream_module = getattr(machine, "stream_module", None)
    if stream_module is None:
        return make(entry.layout, name, address)
    return make(entry.layout, name, address, stream_module(entry.nginx) or "", _IDLE_TIMEOUT_S)


# Processes beside


@contextlib.contextmanager
def _child(target: Any, *args: Any) -> Iterator[BaseProcess]:
    process = multiprocessing.get_context("fork").Process(target=target, args=args, daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join(10)


def _work(sockets: Sequence[Path], draw_s: Any) -> None:
    """Workers that only wait, each for the time that is in ``draw_s`` when it is asked."""
    answer = b'{"data": []}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
    told = head + b"Content-Length: %d\r\n\r\n" % len(answer) + answer

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            await reader.readuntil(b"\r\n\r\n")
            if draw_s.value:
                await asyncio.sleep(draw_s.value * random.uniform(0.8, 1.2))
            writer.write(told)
            await writer.drain()
        writer.close()

    async def run() -> None:
        for path in sockets:
            path.unlink(missing_ok=True)
        servers = [await asyncio.start_unix_server(serve, p, backlog=4096) for p in sockets]
        await asyncio.gather(*(server.serve_forever() for server in servers))

    uvloop.run(run())


def _ask(layout: Layout, addresses: Sequence[str]) -> None:
    """What the guard asks of each host."""
    tls = host_probe.context(layout)
    watches = [
        HostWatch(f"h{n}", HostRow(f"h{n}", address, WORKERS), layout, 0.2)
        for n, address in enumerate(addresses, start=1)
    ]

    async def run() -> None:
        await asyncio.gather(*(w.ask_for_ever(lambda: tls, lambda _: None) for w in watches))

    uvloop.run(run())


# Measuring


@dataclass
class Cluster:
    front: Site
    hosts: list[Site]
    nginx: list[psutil.Process]
    guard: psutil.Process
    draw_s: Any

    def turn(self, args: argparse.Namespace) -> Turn:
        self.draw_s.value = args.draw_s
        drawings, failed, cpu_ms, asking_ms, told = uvloop.run(self._draw(args.seconds))
        asked, handshakes, resumed = told
        self.draw_s.value = 0.0
        medians: dict[int, list[float]] = {self.front.port: [], self.hosts[0].port: []}
        short_cpu_ms, answers, short_failed = 0.0, 0, 0
        for spell in range(_SPELLS):
            for port in sorted(medians, reverse=spell % 2 == 0):
                before = self._cpu_ms()
                count, bad, p50_ms = wrk(port, _SPELL_S)
                medians[port].append(p50_ms)
                short_failed += bad
                if port == self.front.port:
                    short_cpu_ms += self._cpu_ms() - before
                    answers += count
        return Turn(
            drawings=drawings,
            failed=failed,
            handshakes=handshakes / asked,
            resumed=resumed / asked,
            cpu_ms=cpu_ms / drawings,
            asking_ms_per_s=asking_ms / args.seconds,
            short_cpu_ms=short_cpu_ms / answers,
            short_p50_ms=statistics.median(medians[self.front.port]),
            direct_p50_ms=statistics.median(medians[self.hosts[0].port]),
            short_failed=short_failed,
        )

    async def _draw(self, seconds: float) -> tuple[int, int, float, float, tuple[int, int, int]]:
        """Answers, failures, CPU of the front and of the guard's questions, and handshakes, in the
        midst of a load: its first requests make connections, and its end breaks them."""
        statuses: list[int] = []
        warm = asyncio.Event()

        def answered_with(status: int) -> None:
            statuses.append(status)
            if len(statuses) >= 2 * clients:
                warm.set()

        clients = len(self.hosts) * WORKERS * _CLIENTS_A_WORKER
        async with asyncio.TaskGroup() as tasks:
            asking = [
                tasks.create_task(_draw_for_ever(self.front.port, answered_with))
                for _ in range(clients)
            ]
            async with asyncio.timeout(_PATIENCE_S):
                await warm.wait()
            self._take_handshakes()
            answered, of_front, of_guard = len(statuses), self._cpu_ms(), _ran_ms(self.guard)
            await asyncio.sleep(seconds)
            cpu_ms, asking_ms = self._cpu_ms() - of_front, _ran_ms(self.guard) - of_guard
            seen, told = statuses[answered:], self._take_handshakes()
            for task in asking:
                task.cancel()
        return len(seen), sum(status != 200 for status in seen), cpu_ms, asking_ms, told

    def _cpu_ms(self) -> float:
        """So far, of the front's nginx and links."""
        family = {p for each in self.nginx for p in (each, *each.children(recursive=True))}
        return sum(map(_ran_ms, family))

    def _take_handshakes(self) -> tuple[int, int, int]:
        """Since the last time: requests of the front, handshakes, and those resumed."""
        lines = []
        for host in self.hosts:
            log = host.layout.var_dir / "bench"
            lines += log.read_text().splitlines()
            os.truncate(log, 0)
        fresh = [line for line in lines if line.startswith("1 ")]
        return len(lines), len(fresh), sum(line.endswith(" r") for line in fresh)


async def _draw_for_ever(port: int, answered_with: Callable[[int], None]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    asked = f"{head}Content-Length: {len(_BODY)}\r\n\r\n{_BODY}".encode()
    try:
        while True:
            writer.write(asked)
            told = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(told.split("content-length: ")[1].split("\r\n")[0]))
            answered_with(int(told.split(" ")[1]))
    finally:
        writer.close()


def _ran_ms(process: psutil.Process) -> float:
    """To the nanosecond: times in /proc/PID/stat are counted by the hundredth of a second."""
    return int(Path(f"/proc/{process.pid}/schedstat").read_bytes().split()[0]) / 1e6


def wrk(port: int, seconds: float) -> tuple[int, int, float]:
    """Answers to one client, failures, and the median in ms."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".lua") as script:
        script.write(_LUA % _BODY)
        script.flush()
        url = f"http://127.0.0.1:{port}{PATH}"
        done = subprocess.run(
            [*f"wrk -t1 -c1 -d{seconds:g}s --timeout 60s -s {script.name}".split(), url],
            capture_output=True,
            text=True,
            check=True,
            timeout=seconds + 60,
        )
    found = done.stdout.split("RESULT ")[1].split()
    return int(found[0]), int(found[1]), int(found[2]) / 1000


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def until(true: Any, what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"never: {what}")
        time.sleep(0.05)


def _listens(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
        return True
    return False


def in_turns(args: argparse.Namespace) -> Iterator[tuple[str, Turn]]:
    """One checkout after the other, each turn with machines of its own."""
    checkouts = {"here": ROOT, **({"against": args.against} if args.against else {})}
    told = ["--hosts", args.hosts, "--draw-s", args.draw_s, "--seconds", args.seconds]
    command = [sys.executable, __file__, "--one-turn", *map(str, told)]
    for turn in range(args.turns):
        for name in sorted(checkouts, reverse=turn % 2 == 0):
            done = subprocess.run(
                command,
                cwd=checkouts[name],
                env={**os.environ, "PYTHONPATH": str(checkouts[name])},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                timeout=60 + 10 * args.seconds,
            )
            yield name, Turn(**json.loads(done.stdout))


def one_turn(args: argparse.Namespace) -> Turn:
    folder = Path(tempfile.mkdtemp(prefix="zf-", dir="/tmp"))
    try:
        with cluster(folder, args.hosts) as on:
            return on.turn(args)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="loadtest/front", description=__doc__)
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--draw-s", type=float, default=2.5, help="of one picture")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the load of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="compare with it")
    parser.add_argument("--json", type=Path, help="write all turns here too")
    parser.add_argument("--one-turn", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.one_turn:
        print(json.dumps(asdict(one_turn(args))))
        return
    seen: dict[str, list[Turn]] = {}
    for name, turn in in_turns(args):
        seen.setdefault(name, []).append(turn)
        print(f"{name}: {turn}", flush=True)
    print(HEAD)
    for name, turns in seen.items():
        medians = {
            field.name: statistics.median(getattr(turn, field.name) for turn in turns)
            for field in fields(Turn)
        }
        print(f"{name:8} {Turn(**medians)}")
    if args.json:
        told = {name: [asdict(turn) for turn in turns] for name, turns in seen.items()}
        args.json.write_text(json.dumps(told, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
