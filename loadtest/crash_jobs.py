"""Is a job that was answered 202 finished, whatever is killed: each item once, with its picture?

Starts a cell of its own on the synthetic model and makes a job each round, by POSTs that are sent
again with the same idempotency key until they are answered. In the middle of it SIGKILL hits
something at a random moment: a worker, all workers, the guard, nginx, supervisord, or every
process of the cell. What nothing else brings back, `zimage up` does. At the end every item must
have exactly one result, byte for byte the file that a run without faults gives. Exit code 0 when
that holds.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from deploy import output
from deploy.config import ROOT, load
from deploy.host import processes
from deploy.host.processes import Process
from loadtest.faults import Cell
from worker.generation.imaging import encode, parameters_text
from worker.models.synthetic import SyntheticPipeline
from worker.types import DrawSpec, Parameters

CONFIG = """
[cell]
name = "crash"
var_dir = "{folder}/var"
[listen]
port = {port}
[ops]
port = {ops_port}
[model]
source = "{model}"
[guard]
max_kills_per_minute = 1000
[nginx]
max_connections_per_address = 0
max_requests_per_s_per_address = 0
[[workers]]
device = "cpu"
count = {workers}
threads = 1
"""
MODEL = "synthetic:step_ms=20,noise=1"
SIZE, STEPS = 128, 6
_UP_S = 180.0


@dataclass
class Job:
    """One that was accepted. ``asked`` holds what makes its pictures."""

    id: str
    prompts: list[str]
    seed: int


@dataclass
class Report:
    """What the rounds did, and all that is wrong at the end."""

    rounds: int = 0
    killed: Counter[str] = field(default_factory=Counter)
    jobs: int = 0
    items: int = 0
    reposts: int = 0
    seconds: float = 0.0
    strays: int = 0
    problems: list[str] = field(default_factory=list)


class CrashCell(Cell):
    """A cell in ``folder``."""

    def __init__(self, folder: Path, workers: int) -> None:
        port, ops_port = free_ports()
        self.config_path = folder / "cluster.toml"
        values = {"folder": folder, "port": port, "ops_port": ops_port, "workers": workers}
        self.config_path.write_text(CONFIG.format(model=MODEL, **values))
        config = load(self.config_path)
        made = Cell.of(config, self.config_path)
        super().__init__(made.layout, made.url)

    def zimage(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "deploy.cli.app", *arguments]
        environment = {**os.environ, "ZIMAGE_CONFIG": str(self.config_path)}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_UP_S
        )
        if done.returncode:
            raise RuntimeError(f"zimage {arguments[0]}: {done.stdout}{done.stderr}")

    def processes(self) -> list[Process]:
        return processes.members(self.layout.processes)

    def of(self, *words: str) -> list[Process]:  # type: ignore[override]
        """Processes whose command has one of ``words``."""
        return [p for p in self.processes() if any(word in p.command for word in words)]


Victims = Callable[[CrashCell, random.Random], list[Process]]

KILLS: dict[str, Victims] = {
    "a worker": lambda cell, rng: rng.sample(cell.of("-m worker"), 1),
    "all workers": lambda cell, _: cell.of("-m worker"),
    "the guard": lambda cell, _: cell.of("deploy.guard"),
    "nginx": lambda cell, _: cell.of("nginx: "),
    "supervisord": lambda cell, _: cell.of("supervisord"),
    "everything": lambda cell, _: cell.processes(),
}


def run(rounds: int, seed: int = 0, workers: int = 2, items: int = 12) -> Report:
    """Play ``rounds`` on a new cell and judge."""
    rng, report, began = random.Random(seed), Report(), time.monotonic()
    with _cell(workers) as cell:
        jobs: list[Job] = []
        for number in range(rounds):
            jobs.append(_round(cell, rng, report, number, items))
        _heal(cell)
        _until_over(cell, jobs, report)
        report.seconds = time.monotonic() - began
        judge(cell, jobs, report)
    return report


def _round(cell: CrashCell, rng: random.Random, report: Report, number: int, items: int) -> Job:
    """Make a job while something is killed."""
    name = _chosen(rng)
    delay_s = rng.uniform(0, 0.8)
    killer = threading.Timer(delay_s, _kill, (cell, rng, name))
    killer.start()
    job = _made(cell, rng, number, items, report)
    killer.join()
    report.rounds += 1
    report.killed[name] += 1
    output.say(f"  {number + 1}: {name} after {delay_s:.2f} s")
    if name in ("supervisord", "everything"):
        _heal(cell)
    return job


def _chosen(rng: random.Random) -> str:
    return rng.choice(list(KILLS))


def _kill(cell: CrashCell, rng: random.Random, name: str) -> None:
    with contextlib.suppress(ValueError):  # no worker is there to be killed
        for victim in KILLS[name](cell, rng):
            victim.send(signal.SIGKILL)


def _made(cell: CrashCell, rng: random.Random, number: int, items: int, report: Report) -> Job:
    prompts = [f"round {number} item {k} {rng.getrandbits(32):08x}" for k in range(items)]
    seed = rng.getrandbits(32)
    body = {
        "prompts": prompts,
        "seed": seed,
        "size": f"{SIZE}x{SIZE}",
        "steps": STEPS,
        "idempotency_key": f"round {number}",
    }
    deadline = time.monotonic() + _UP_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError, ValueError):
            answer = httpx.post(f"{cell.url}/v1/jobs", json=body, timeout=10)
            if answer.status_code == 202:
                return Job(answer.json()["id"], prompts, seed)
        report.reposts += 1
        if processes.leader(cell.layout.processes) is None:
            _heal(cell)
        time.sleep(0.2)
    raise TimeoutError(f"round {number}: no job was accepted within {_UP_S:g} s")


def _heal(cell: CrashCell) -> None:
    cell.zimage("up", "--no-draw")


def _until_over(cell: CrashCell, jobs: list[Job], report: Report) -> None:
    deadline = time.monotonic() + 300
    left = jobs
    while left and time.monotonic() < deadline:
        left = [job for job in left if _get(cell, job.id)["finished_at"] is None]
        time.sleep(0.5)
    report.problems += [f"{job.id} is not over: {_get(cell, job.id)['counts']}" for job in left]


def judge(cell: CrashCell, jobs: list[Job], report: Report) -> None:
    """Every item of every accepted job once, with the right bytes, and no job beside them."""
    report.jobs, report.items = len(jobs), sum(len(job.prompts) for job in jobs)
    known = {job["id"] for job in _pages(cell, "/v1/jobs?limit=100")}
    for extra in known ^ {job.id for job in jobs}:
        report.problems.append(f"{extra}: accepted and unknown, or made twice")
    images = _pages(cell, "/v1/images?limit=100")
    report.problems += _doubled(images)
    files = {path.stem: path for path in cell.layout.images_dir.rglob("img_*.png")}
    report.strays = len(files) - len(images)
    for job in jobs:
        report.problems += _wrong(job, _pages(cell, f"/v1/jobs/{job.id}/items?limit=500"), files)


def _doubled(images: list[dict[str, Any]]) -> list[str]:
    times = Counter((i["job"]["id"], i["job"]["number"]) for i in images if i["job"])
    return [f"{key} has {count} pictures" for key, count in times.items() if count > 1]


def _wrong(job: Job, items: list[dict[str, Any]], files: dict[str, Path]) -> list[str]:
    problems = []
    if [item["prompt"] for item in items] != job.prompts:
        problems.append(f"{job.id} has other items than were asked for")
    for k, item in enumerate(items):
        name = f"{job.id} item {item['number']}"
        path = files.get((item["image"] or {}).get("id", ""))
        if item["state"] != "done" or path is None:
            problems.append(f"{name} is {item['state']} ({item['error']})")
        elif path.read_bytes() != _expected(item["prompt"], (job.seed + k) % 2**32):
            problems.append(f"{name} has another picture than its seed gives")
    return problems


def _expected(prompt: str, seed: int) -> bytes:
    """The file that a run without faults stores."""
    pipeline = SyntheticPipeline(MODEL)
    spec = DrawSpec(prompt, seed, Parameters(SIZE, SIZE, STEPS))
    [sample] = pipeline.start([spec])
    sample.step_index = STEPS
    [pixels] = pipeline.finish([sample])
    return encode(pixels, "png", None, parameters_text(spec, "synthetic"))


def _get(cell: CrashCell, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{cell.url}/v1/jobs/{job_id}", timeout=30).json()
    return found


def _pages(cell: CrashCell, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        last = f"&after={found[-1].get('id', found[-1].get('number'))}" if found else ""
        page = httpx.get(f"{cell.url}{path}{last}", timeout=30).json()
        found += page["data"]
        if not page["has_more"]:
            return found


@contextlib.contextmanager
def _cell(workers: int) -> Iterator[CrashCell]:
    folder = Path(tempfile.mkdtemp(prefix="crash-", dir="/tmp"))
    cell = CrashCell(folder, workers)
    try:
        cell.zimage("up", "--no-draw")
        yield cell
    finally:
        cell.zimage("down", "--now")
        shutil.rmtree(folder, ignore_errors=True)


def free_ports() -> list[int]:
    with socket.socket() as one, socket.socket() as two:
        for each in (one, two):
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in (one, two)]


def show(report: Report) -> None:
    kills = ", ".join(f"{name} {count}" for name, count in sorted(report.killed.items()))
    output.say(f"{report.rounds} rounds in {report.seconds:.0f} s; killed: {kills}")
    output.say(
        f"{report.jobs} jobs, {report.items} items; {report.reposts} POSTs had to be repeated"
    )
    output.say(
        f"{report.strays} files without a row (killed between file and row; retention deletes them)"
    )
    for problem in report.problems[:20]:
        output.say(f"  ✗ {problem}")
    verdict = "ok  " if not report.problems else "FAIL"
    output.say(f"{verdict} every item has exactly one result, the right one")


def main() -> None:
    parser = argparse.ArgumentParser(prog="loadtest/crash-jobs", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--items", type=int, default=12, help="of each job")
    given = parser.parse_args()
    report = run(given.rounds, given.seed, given.workers, given.items)
    show(report)
    sys.exit(1 if report.problems else 0)


if __name__ == "__main__":
    main()
