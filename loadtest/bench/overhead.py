"""What everything but the drawing costs: a pipeline that takes no time, through a whole cell.

Starts a cell of its own (nginx, guard, workers on the synthetic pipeline), LitServe and a Gradio
queue, one after the other, and loads each with 1, 16 and 64 clients. All draw with the same
pipeline and write the same PNG. wrk speaks HTTP to the first two; Gradio's queue takes two requests
an answer, which a small client of ours makes. CPU time is that of all processes of the server. The
cell stores no pictures, for its peers store none; ``gallery`` is one that does, as by default.
LitServe and Gradio are in the dependency group ``peers``; ``--peers`` names a Python that has them
and the kit, and without it only the cell is measured.

``--against CHECKOUT`` compares with another checkout that has its own ``.venv``: both cells run at
once and are loaded in short turns, for a machine's speed may change from one minute to the next.
The median of the turns' ratios is what the change costs.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil

from loadtest.measures import percentile

ROOT = Path(__file__).resolve().parents[2]
PATH = "/v1/images/generations"
BODY = '{"prompt": "a red circle", "size": "%s", "steps": 1, "output_format": "%s"}'
CELL = """
[cell]
name = "overhead"
var_dir = "{folder}/var"
[listen]
port = {port}
[ops]
port = {ops_port}
[model]
source = "synthetic:step_ms=0,noise=1"
[nginx]
max_connections_per_address = 0
max_requests_per_s_per_address = 0
[gallery]
enabled = {gallery}
[[workers]]
device = "cpu"
count = {workers}
threads = 1
"""
_LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '%s'
done = function(summary, latency, requests)
  local bad = summary.errors.connect + summary.errors.read + summary.errors.write
            + summary.errors.status + summary.errors.timeout
  io.write(string.format("RESULT %%d %%d %%d %%d %%d %%d\\n",
    summary.requests, summary.duration, bad,
    latency:percentile(50), latency:percentile(95), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Result:
    """One server under one number of clients. Latencies in milliseconds."""

    server: str
    clients: int
    per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_ms: float  # of all its processes, a request
    nginx_cpu_ms: float  # of that, nginx's
    failed: int

    def __str__(self) -> str:
        times = f"{self.p50_ms:8.2f} {self.p95_ms:8.2f} {self.p99_ms:8.2f}"
        head = f"{self.server:<10} {self.clients:>7} {self.per_s:>10.0f} {times}"
        return f"{head} {self.cpu_ms:>8.2f} {self.nginx_cpu_ms:>6.2f} {self.failed:>6}"


PEERS = ("litserve", "gradio")
HEAD = f"{'server':<10} {'clients':>7} {'requests/s':>10} {'p50 ms':>8} {'p95':>8} {'p99':>8} "
HEAD += f"{'CPU ms':>8} {'nginx':>6} {'failed':>6}"


# Servers


@contextlib.contextmanager
def cell(workers: int, gallery: bool, checkout: Path = ROOT) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the marks of its processes: its folder is on each one's command line."""
    folder = Path(tempfile.mkdtemp(prefix="zo-", dir="/tmp"))
    port, ops_port = free_port(), free_port()
    config = folder / "cluster.toml"
    values = {"folder": folder, "port": port, "ops_port": ops_port, "workers": workers}
    config.write_text(CELL.format(**values, gallery=str(gallery).lower()))

    def zimage(verb: str, *options: str) -> None:
        program = [sys.executable, "-m", "deploy.cli.app"]
        if checkout != ROOT:
            program = [str(checkout / ".venv/bin/zimage")]
        command = [*program, verb, "--config", str(config), *options]
        subprocess.run(command, cwd=checkout, check=True, stdout=subprocess.DEVNULL)

    try:
        zimage("up", "--no-draw")
        yield f"http://127.0.0.1:{port}", [str(folder)]
    finally:
        zimage("down", "--now")
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def process(python: str, module: str) -> Iterator[tuple[str, list[str]]]:
    """``python -m module PORT`` until the block ends, with all its children."""
    port = free_port()
    quiet = {"GRADIO_ANALYTICS_ENABLED": "False", "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(
        [python, "-m", module, str(port)],
        cwd=ROOT,
        env={**os.environ, **quiet},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(port)
        yield f"http://127.0.0.1:{port}", [f"_app {port}"]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(port: int, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            time.sleep(1.0)
            return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port}")


# Load


def wrk(url: str, body: str, clients: int, seconds: float) -> tuple[float, list[float], int]:
    """Requests per second, p50, p95 and p99 in milliseconds, and failures."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".lua") as script:
        script.write(_LUA % body)
        script.flush()
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "--timeout", "10s"]
        done = subprocess.run(
            [*command, "-s", script.name, url + PATH], capture_output=True, text=True, check=True
        )
    found = re.search(r"RESULT ([\d ]+)", done.stdout)
    if found is None:
        raise RuntimeError(f"wrk said: {done.stdout} {done.stderr}")
    requests, duration_us, bad, *latencies_us = map(int, found[1].split())
    return requests / duration_us * 1e6, [us / 1000 for us in latencies_us], bad


async def gradio_load(url: str, clients: int, seconds: float) -> tuple[float, list[float], int]:
    """The same of Gradio's queue: a POST that joins, a GET whose stream ends with the answer."""
    end, times, bad = time.monotonic() + seconds, [], 0

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal bad
        while time.monotonic() < end:
            began = time.monotonic()
            joined = await http.post(f"{url}/gradio_api/call/draw", json={"data": ["a red circle"]})
            event = joined.json()["event_id"]
            answer = await http.get(f"{url}/gradio_api/call/draw/{event}")
            bad += "event: complete" not in answer.text
            times.append((time.monotonic() - began) * 1000)

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(timeout=60, limits=limits) as http, asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client(http))
    return len(times) / seconds, [percentile(times, q) for q in (0.5, 0.95, 0.99)], bad


# CPU time


def family(marks: list[str]) -> list[psutil.Process]:
    """Processes whose command line or environment has one of ``marks``, and their descendants."""
    found: set[psutil.Process] = set()
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            text = " ".join([*each.cmdline(), *map("=".join, each.environ().items())])
            if any(mark in text for mark in marks):
                found |= {each, *each.children(recursive=True)}
    return list(found - {psutil.Process()})


def cpu_s(processes: list[psutil.Process]) -> tuple[float, float]:
    """CPU seconds of ``processes`` so far, and nginx's among them."""
    total = nginx = 0.0
    for each in processes:
        with contextlib.suppress(psutil.Error):
            times = each.cpu_times()
            total += times.user + times.system
            nginx += (times.user + times.system) * (each.name() == "nginx")
    return total, nginx


def measure(
    name: str, url: str, marks: list[str], body: str, clients: int, seconds: float
) -> Result:
    processes = family(marks)
    before = cpu_s(processes)
    if name == "gradio":
        per_s, latencies, bad = asyncio.run(gradio_load(url, clients, seconds))
    else:
        per_s, latencies, bad = wrk(url, body, clients, seconds)
    pairs = zip(cpu_s(processes), before, strict=True)
    cpu_ms, nginx_ms = [(after - was) * 1000 / max(1.0, per_s * seconds) for after, was in pairs]
    p50_ms, p95_ms, p99_ms = latencies
    return Result(name, clients, per_s, p50_ms, p95_ms, p99_ms, cpu_ms, nginx_ms, bad)


def series(name: str, url: str, marks: list[str], args: argparse.Namespace) -> Iterator[Result]:
    body = BODY % (args.size, args.format)
    measure(name, url, marks, body, 4, 1.0)  # warm up
    for clients in args.clients:
        yield measure(name, url, marks, body, clients, args.seconds)


@dataclass(frozen=True)
class Comparison:
    """This checkout's cell by another's under as many clients: medians of the turns' ratios."""

    server: str
    clients: int
    turns: int
    per_s: float
    cpu: float  # CPU time of all processes, a request
    failed: int

    def __str__(self) -> str:
        head = f"{self.server:<10} {self.clients:>7} {self.turns:>6}"
        return f"{head} {self.per_s:>11.3f} {self.cpu:>9.3f} {self.failed:>6}"


COMPARED = f"{'server':<10} {'clients':>7} {'turns':>6} {'requests/s':>11} {'CPU':>9} {'failed':>6}"


def compare(gallery: bool, args: argparse.Namespace) -> Iterator[Comparison]:
    name = "gallery" if gallery else "cell"
    pairs: dict[int, list[tuple[Result, Result]]] = {clients: [] for clients in args.clients}
    # Of two cells of one checkout, the one that started first was a few percent slower.
    for first in (ROOT, args.against):
        for clients, pair in turns(name, first, args):
            pairs[clients].append(pair)
    for clients, measured in pairs.items():
        yield Comparison(
            name,
            clients,
            len(measured),
            statistics.median(new.per_s / old.per_s for new, old in measured),
            statistics.median(new.cpu_ms / old.cpu_ms for new, old in measured),
            sum(new.failed + old.failed for new, old in measured),
        )


def turns(
    name: str, first: Path, args: argparse.Namespace
) -> Iterator[tuple[int, tuple[Result, Result]]]:
    """Ours and theirs under each number of clients, half of ``args.turns`` times; the cell of
    ``first`` is started first."""
    gallery, body = name == "gallery", BODY % (args.size, args.format)
    second = args.against if first == ROOT else ROOT
    with cell(args.workers, gallery, first) as a, cell(args.workers, gallery, second) as b:
        ours, theirs = (a, b) if first == ROOT else (b, a)
        for url, marks in (a, b):
            measure(name, url, marks, body, 4, 1.0)  # warm up
        for clients in args.clients:
            for turn in range(-(-args.turns // 2)):
                order = (ours, theirs) if turn % 2 == 0 else (theirs, ours)
                pair = [measure(name, *one, body, clients, args.seconds) for one in order]
                new, old = pair if turn % 2 == 0 else pair[::-1]
                yield clients, (new, old)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="loadtest/overhead", description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", default="80x64", help="noise of this size is a PNG of 15 KB")
    parser.add_argument("--format", default="png")
    parser.add_argument("--peers", help="a Python with LitServe and Gradio")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="compare with it")
    parser.add_argument("--turns", type=int, default=15, help="of each, with --against")
    parser.add_argument("--json", type=Path, help="write the results here too")
    return parser.parse_args()


def absolute(args: argparse.Namespace) -> Iterator[Result]:
    print(HEAD)
    for name in ("cell", "gallery"):
        with cell(args.workers, gallery=name == "gallery") as (url, marks):
            yield from series(name, url, marks, args)
    for name in PEERS if args.peers else ():
        with process(args.peers, f"loadtest.peers.{name}_app") as (url, marks):
            yield from series(name, url, marks, args)


def compared(args: argparse.Namespace) -> Iterator[Comparison]:
    print(f"This checkout by {args.against}: medians of the ratios of {args.turns} turns")
    print(COMPARED)
    yield from compare(False, args)
    yield from compare(True, args)


def main() -> None:
    args = arguments()
    results: list[Result | Comparison] = []
    for result in compared(args) if args.against else absolute(args):
        print(result, flush=True)
        results.append(result)
    if args.json:
        args.json.write_text(json.dumps([asdict(result) for result in results], indent=1))
    sys.exit(1 if any(result.failed for result in results) else 0)


if __name__ == "__main__":
    main()
