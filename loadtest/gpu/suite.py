"""One command from a machine with GPUs to a file of results; needs no network.

Stages, of which ``--stages`` names some: the model is made once, with random weights, and saved as
a folder; every cell loads it from there. Results are JSON lines in ``--out``, one a measurement.
A stage that fails says so there, and the next one begins.
"""

import argparse
import asyncio
import contextlib
import functools
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pynvml
import torch

from deploy.cli.trace import counters
from deploy.config import ROOT, load
from deploy.host import processes
from loadtest.faults import Cell
from loadtest.faults.workers import kill
from loadtest.gpu import gradio_load, power
from loadtest.gpu.served import Load
from loadtest.waiting import beside
from worker.coordination.processes import GROUP, PARENT, STATE, stat
from worker.models.loading.sources import RANDOM

FAULTY = Path(__file__).parent / "faulty"
STARTED_S = 21.0
"""``startsecs`` of a worker in ``supervisord.conf``, and one."""
BACK_S = 150.0
"""A worker that is not ready again by then has failed the stage."""
MIXED_LENGTHS = (1, 8, 20)
"""Words of a prompt. For the random model's tokenizer each is six tokens: these prompts are as long
as real ones of 5, 40 and 90 words."""
MIXED_WARM_S = 20.0
LARGE = ("2048x2048", "2560x1440")
LARGE_GIB = 60.0
BARE = ("shape", "images_per_s", "watts", "celsius")
"""What is told of a bare loop."""


@dataclass
class Suite:
    """``home`` holds model, state and configurations; its path must be short."""

    home: Path
    out: Path
    model: Path
    sizes: tuple[int, ...]
    seconds: dict[int, float]  # of a saturated load, by size
    port: int = 7960
    rates: dict[int, float] = field(default_factory=dict)  # images/s by side, as measured
    device: str = "0"
    keys: dict[str, str] = field(default_factory=dict)  # of [model], for every cell
    running: str = ""  # the name of the cell

    @property
    def card(self) -> str | None:
        """Whose power is watched."""
        return None if self.device == "cpu" else self.device

    def note(self, **result: Any) -> None:
        """Print and keep one result."""
        result = {"at": time.strftime("%H:%M:%S"), **result}
        print(json.dumps(result), flush=True)
        with self.out.open("a") as file:
            file.write(json.dumps(result) + "\n")

    def up(
        self, name: str, count: int = 1, gib: float | None = None, cards: int = 1, **model: str
    ) -> Cell:
        """The running cell, with ``count`` workers on each of ``cards`` cards; its compile cache is
        that of the cells before it."""
        return self.up_as(name, self.workers(count, gib, cards), **model)

    def up_as(self, name: str, workers: str, limits: str = "", **model: str) -> Cell:
        """As ``up``, with the tables ``workers``, and ``limits`` as lines of the file."""
        path, self.running = self.home / f"{name}.toml", name
        path.write_text(self.toml(workers, self.keys | model, limits))
        began = time.monotonic()
        command = [sys.executable, "-m", "deploy.cli.app", "up", "--no-draw", "-c", str(path)]
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
        self.note(stage="up", cell=name, seconds=seconds_since(began), code=done.returncode)
        if done.returncode:
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
        cell = Cell.of(load(path), path)
        self.note(stage="up", cell=name, boot=boot(cell), optimisations=optimisations(cell))
        return cell

    def verb(self, verb: str, worker: str) -> None:
        """``zimage drain`` or ``undrain``."""
        command = [sys.executable, "-m", "deploy.cli.app", verb, worker]
        path = self.home / f"{self.running}.toml"
        subprocess.run([*command, "-c", str(path)], cwd=ROOT, capture_output=True, check=True)

    def down(self) -> None:
        """End whatever cell runs."""
        for path in self.home.glob("*.toml"):
            command = [sys.executable, "-m", "deploy.cli.app", "down", "-c", str(path)]
            subprocess.run(command, cwd=ROOT, capture_output=True, check=False)

    def workers(self, count: int, gib: float | None, cards: int) -> str:
        limit = "" if gib is None or self.device == "cpu" else f"vram_limit_gib = {gib}\n"
        devices = [self.device] if cards == 1 else map(str, range(cards))
        return "".join(
            f'[[workers]]\ndevice = "{each}"\ncount = {count}\n{limit}' for each in devices
        )

    def joined(self, gib: float | None = None, slice_gib: float | None = None) -> str:
        """A worker on all cards; with ``slice_gib``, another on the last of them."""
        count = torch.cuda.device_count()
        names = list(map(str, range(count))) if self.device != "cpu" else ["cpu", "cpu"]
        tables = [f'devices = "{",".join(names)}"']
        tables += [f'device = "{names[-1]}"'] if slice_gib else []
        limits = (gib, slice_gib) if self.device != "cpu" else (None, None)
        return "".join(
            f"[[workers]]\n{table}\n" + (f"vram_limit_gib = {limit}\n" if limit else "")
            for table, limit in zip(tables, limits, strict=False)
        )

    def toml(self, workers: str, model: dict[str, str], limits: str = "") -> str:
        keys = "".join(f'{key} = "{value}"\n' for key, value in model.items())
        return (
            f"{workers}[limits.request]\n{limits}\n"
            f'[cell]\nvar_dir = "{self.home / "var"}"\nuser = "{os.environ.get("USER", "root")}"\n'
            f"[listen]\nport = {self.port}\n[ops]\nport = {self.port + 1}\n"
            "[nginx]\nmax_requests_per_s_per_address = 0\n"
            f'[model]\nsource = "{self.model}"\n{keys}'
            f'[environment]\nPYTHONPATH = "{FAULTY}"\nGPU_FAULTS = "{self.home}"\n'
        )


def make_model(suite: Suite) -> None:
    """Z-Image-Turbo's sizes with random weights, as a folder; nothing where it is there, or where
    every process makes its own."""
    if str(suite.model) == RANDOM or (suite.model / "model_index.json").exists():
        return
    began = time.monotonic()
    program = (
        "import sys, torch\n"
        "from worker.models.loading.random_zimage import TURBO, random_zimage\n"
        "device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')\n"
        "random_zimage(TURBO, device, torch.bfloat16).save_pretrained(sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", program, str(suite.model)], cwd=ROOT, check=True)
    suite.note(stage="model", seconds=seconds_since(began))


def serve(suite: Suite) -> None:
    """Alone and saturated at each size; and what the drawing threads waited for."""
    cell = suite.up("served")
    for size in suite.sizes:
        result = measured(suite, cell, size)
        suite.rates[size] = result["images_per_s"]


def measured(
    suite: Suite, cell: Cell, size: int, stage: str = "serve", clients: int = 8, **about: Any
) -> dict[str, Any]:
    """One client and then ``clients``, JPEG, at one size."""

    async def go(load: Load) -> dict[str, Any]:
        alone = await load.alone(size, 5)
        before = totals(cell)
        with power.watched(suite.card) as drawn:
            found = await load.saturated(size, clients, 4.0, suite.seconds[size])
        return {
            "alone_s": alone["median_s"],
            "images_per_s": found["images_per_s"],
            "seconds": found["seconds"],
            "batch": found["batch"],
            **idle(before, totals(cell)),
            **drawn,
        }

    result = with_load(cell, go, clients=clients)
    suite.note(stage=stage, size=size, clients=clients, **result, **about)
    return result


def restart(suite: Suite, times: int = 1) -> None:
    """SIGKILL to ready, with nothing else to do and all caches warm."""
    cell = suite.up("served")
    for _ in range(times):
        settle(cell, "w1")
        began = time.monotonic()
        dead = kill(cell, "w1")
        await_back(cell, "w1", dead)
        suite.note(stage="restart", seconds=seconds_since(began), boot=boot(cell))


def mixed(suite: Suite, seconds: float = 60.0) -> None:
    """32 clients, sizes and prompt lengths mixed, against what the single sizes promise."""
    cell = suite.up("served")

    async def go(load: Load) -> dict[str, Any]:
        drawn: list[tuple[float, int, int]] = []  # when, side, pictures in its batch
        dice = random.Random(1)
        stop = time.perf_counter() + MIXED_WARM_S + seconds
        warm = stop - seconds  # by then each shape was seen

        async def client() -> None:
            while time.perf_counter() < stop:
                size = dice.choice(suite.sizes)
                words = " ".join(["boats"] * dice.choice(MIXED_LENGTHS))
                _, response = await load.draw(size, words)
                if warm < (now := time.perf_counter()) < stop and response.status_code == 200:
                    drawn.append((now, size, int(response.headers["x-batch-size"])))

        before = totals(cell)
        await asyncio.gather(*(client() for _ in range(32)))
        return of_promised(drawn, suite.rates) | idle(before, totals(cell))

    suite.note(stage="mixed", clients=32, **with_load(cell, go, clients=32))


def of_promised(drawn: list[tuple[float, int, int]], rates: dict[int, float]) -> dict[str, Any]:
    """``drawn``: when each picture came, its side, and how many its batch had. ``rates``: images a
    second where all pictures have one side. Counted from the first picture to the last."""
    (first, *_), last = drawn[0], drawn[-1][0]
    batches: defaultdict[int, list[int]] = defaultdict(list)
    for _, side, batch in drawn[1:]:
        batches[side].append(batch)
    promised_s = sum(len(found) / rates[side] for side, found in batches.items())
    return {
        "drawn": {side: len(found) for side, found in batches.items()},
        "batch": {
            side: round(statistics.mean(found), 2) for side, found in batches.items() if found
        },
        "seconds": round(last - first, 2),
        "of_promised": round(promised_s / (last - first), 3),
    }


def priority(suite: Suite, seconds: float = 25.0) -> None:
    """p95 of one interactive client, idle and beside saturating batch work, at the second size."""
    cell, side = suite.up("served"), suite.sizes[-2]

    async def go(load: Load) -> dict[str, Any]:
        idle_s = [(await load.draw(side))[0] for _ in range(42)][2:]
        over = asyncio.Event()

        async def background() -> None:
            while not over.is_set():
                await load.draw(side, priority="batch")

        tasks = [asyncio.create_task(background()) for _ in range(8)]
        await asyncio.sleep(3.0)
        busy_s = []
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop:
            busy_s.append((await load.draw(side))[0])
            await asyncio.sleep(0.3)
        over.set()
        await asyncio.gather(*tasks)
        return {"idle_p95_s": p95(idle_s), "busy_p95_s": p95(busy_s), "count": len(busy_s)}

    suite.note(stage="priority", **with_load(cell, go, clients=16))


def faults(suite: Suite) -> None:
    """Four real faults under load with two workers on one card: requests that failed."""
    cell = suite.up("slices", count=2, gib=38.0)
    with loaded(cell, 6, suite.sizes[-2]) as load:
        for name, worker in zip(faults_of(suite), itertools.cycle(("w1", "w2"))):
            time.sleep(3.0)
            injected(suite, cell, load, name, worker)
    suite.note(stage="faults", failed=load.failed, drawn=load.drawn)


def large_faults(suite: Suite) -> None:
    """As ``faults``, with pictures of 2048² and 2560 × 1440; before it, how long each takes."""
    limits = f"max_pixels = {joined_side(suite) ** 2}"
    cell = suite.up_as("large", suite.workers(2, LARGE_GIB, 1), limits)
    sizes = LARGE if suite.device != "cpu" else ("64x64", "96x64")
    suite.verb("drain", "w2")
    await_open(cell, {"w1"})
    for size in sizes:

        async def go(load: Load, size: str = size) -> dict[str, Any]:
            return await load.alone(size, 3)

        suite.note(stage="large", size=size, **with_load(cell, go, clients=1))
    suite.verb("undrain", "w2")
    await_open(cell, {"w1", "w2"})
    with loaded(cell, 6, *sizes) as load:
        for name, worker in zip(faults_of(suite), itertools.cycle(("w1", "w2"))):
            time.sleep(6.0)
            injected(suite, cell, load, name, worker)
    suite.note(stage="large-faults", failed=load.failed, drawn=load.drawn)


def injected(suite: Suite, cell: Cell, load: "Counting", fault: str, worker: str) -> None:
    """One of ``FAULTS`` in ``worker`` under ``load``, until it serves again. A worker of several
    cards has a helper, ``WORKER-1``: its faults are the worker's."""
    lead, _, helper = worker.partition("-")
    began, failed, drawn, pid = time.monotonic(), load.failed, load.drawn, cell.pid(lead)
    FAULTS[fault](suite, helper_of(pid) if helper else pid, worker)
    if fault == "out of memory":
        time.sleep(12.0)  # its own length; the worker may stay
        await_serving(cell, lead)
    else:
        await_back(cell, lead, pid)
    same = cell.pid(lead) == pid
    suite.note(
        stage="fault",
        fault=fault,
        worker=worker,
        back_s=seconds_since(began),
        same_process=same,
        failed=load.failed - failed,
        drawn=load.drawn - drawn,
        left=0 if same else left_of(pid),
        open=sorted(cell.open()),
    )


def signalled(number: int, suite: Suite, pid: int, worker: str) -> None:
    os.kill(pid, number)


def asked_for(fault: str, suite: Suite, pid: int, worker: str) -> None:
    """By the file that ``faulty`` looks for."""
    (suite.home / f"{worker}.{fault}").touch()


FAULTS: dict[str, Callable[[Suite, int, str], None]] = {
    "SIGKILL": functools.partial(signalled, signal.SIGKILL),
    "SIGSTOP": functools.partial(signalled, signal.SIGSTOP),
    "device-side assert": functools.partial(asked_for, "assert"),
    "out of memory": functools.partial(asked_for, "memory"),
}


def faults_of(suite: Suite) -> list[str]:
    """Those of ``FAULTS`` that the device can have."""
    return [name for name in FAULTS if suite.device != "cpu" or name.startswith("SIG")]


def scale(suite: Suite, rounds: int = 2) -> None:
    """One worker on each card: images/s of each alone, and of the first 2, 3, … together; all of it
    ``rounds`` times, for a card does not run at one speed all the time."""
    cards, size = torch.cuda.device_count() or 1, suite.sizes[0]
    cell = suite.up("cards", cards=cards)
    names = [f"w{number + 1}" for number in range(cards)]

    async def go(load: Load, clients: int) -> dict[str, Any]:
        return await load.saturated(size, clients, 4.0, suite.seconds[size])

    def rate(serving: list[str]) -> float:
        for name in names:
            suite.verb("undrain" if name in serving else "drain", name)
        await_open(cell, set(serving))
        clients = 8 * len(serving)
        found = with_load(cell, functools.partial(go, clients=clients), clients=clients)
        suite.note(stage="scale", serving=serving, **found)
        return float(found["images_per_s"])

    alone: list[list[float]] = [[] for _ in names]
    together: dict[int, list[float]] = {count: [] for count in range(2, cards + 1)}
    for _ in range(rounds):
        for name, rates in zip(names, alone, strict=True):
            rates.append(rate([name]))
        for count, rates in together.items():
            rates.append(rate(names[:count]))
    for count, rates in {1: alone[0], **together}.items():
        total, found = sum(map(statistics.mean, alone[:count])), statistics.mean(rates)
        suite.note(
            stage="scale",
            size=size,
            cards=count,
            alone=alone[:count],
            together=rates,
            alone_sum=round(total, 3),
            images_per_s=round(found, 3),
            of_sum=round(found / total, 4),
        )


def slices(suite: Suite, count: int = 3, gib: float = 26.0) -> None:
    """Workers that share one card: what they draw together, what each takes of the memory, and
    that neither one that wants more nor one that dies touches the others."""
    cell = suite.up("thirds", count=count, gib=gib)
    names = [f"w{number + 1}" for number in range(count)]
    for size in suite.sizes[:2]:
        measured(suite, cell, size, stage="slices", clients=8 * count)
    pids = {name: cell.pid(name) for name in names}
    with loaded(cell, 4 * count, suite.sizes[1]) as load, process_memory() as most:
        time.sleep(3.0)
        (suite.home / "w2.memory").touch()
        time.sleep(12.0)
        suite.note(stage="slices", pushed="w2", failed=load.failed, drawn=load.drawn)
        (suite.home / "w3.assert").touch()
        await_back(cell, "w3", pids["w3"])
        same = {name: cell.pid(name) == pids[name] for name in names}
        time.sleep(2.0)
    suite.note(
        stage="slices",
        killed="w3",
        failed=load.failed,
        drawn=load.drawn,
        same_process=same,
        limit_gib=gib,
        most_gib={name: round(most.get(pid, 0) / 2**30, 2) for name, pid in pids.items()},
    )


def bare(suite: Suite) -> None:
    """The same pipeline in a loop without a server, in batches as the worker's."""
    suite.down()
    levers_out = suite.home / "bare.jsonl"
    levers_out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "loadtest.gpu.optimisations", "--model", str(suite.model)]
    command += ["--device", "cpu" if suite.device == "cpu" else "cuda:0", "--out", str(levers_out)]
    command += ["--sizes", ",".join(map(str, suite.sizes[:2])), "--rows", "1,2,4", "--bare"]
    command += ["--steps", "", "--decodes", "", "--no-pictures"]
    visible = {} if suite.device == "cpu" else {"CUDA_VISIBLE_DEVICES": suite.device}
    subprocess.run(command, cwd=ROOT, env={**os.environ, **visible}, check=True)
    for line in levers_out.read_text().splitlines():
        if (found := json.loads(line))["what"] == "bare":
            told = {key: value for key, value in found.items() if key in BARE}
            suite.note(stage="bare", **told)


def gradio(suite: Suite, seconds: float = 40.0) -> None:
    """diffusers, eager, behind a Gradio queue, which needs ``pip install gradio``."""
    suite.down()
    log = suite.home / "gradio.log"
    with gradio_load.started(suite.model, suite.port + 2, suite.device, log) as url:
        for file in ("png", "webp"):
            with power.watched(suite.card) as drawn:
                found = asyncio.run(gradio_load.rate(url, file, suite.sizes[0], seconds))
            suite.note(stage="gradio", file=file, size=suite.sizes[0], **found, **drawn)


def calibrate(suite: Suite) -> None:
    """``zimage calibrate``: the peaks and times that it finds."""
    suite.down()
    path = suite.home / "calibrated.toml"
    path.write_text(suite.toml(suite.workers(1, None, 1), suite.keys))
    sides = ",".join(f"{size}x{size}" for size in suite.sizes)
    command = [sys.executable, "-m", "deploy.cli.app", "calibrate", "-c", str(path), "--json"]
    command += ["--sizes", sides, "--repeats", "2"]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout[-800:] + done.stderr[-800:])
    table = json.loads(done.stdout[done.stdout.index("{") :])
    suite.note(stage="calibrate", seconds=seconds_since(began), **table)


def fp8(suite: Suite) -> None:
    """The transformer in 8 bits."""
    cell = suite.up("fp8", fp8="transformer")
    measured(suite, cell, suite.sizes[0], fp8="transformer")


def small_card(suite: Suite, limit_gib: float = 15.0) -> None:
    """All weights in 8 bits under a limit, and the card's peak as the driver sees it."""
    suite.down()  # for nothing else may be on the card
    with watched_memory(suite.device) as peak:
        cell = suite.up("small", gib=limit_gib, fp8="all")
        measured(suite, cell, suite.sizes[0], fp8="all", limit_gib=limit_gib)
    suite.note(stage="small-card", limit_gib=limit_gib, peak_gib=round(peak[0] / 1024, 2))


def joined(suite: Suite, fp8: str = "off") -> None:
    """One worker on all cards: how long a picture takes alone, also of twice the largest side; and
    how many pictures two and eight clients get."""
    cell = joined_cell(suite, fp8)
    suite.verb("drain", "w2")
    await_open(cell, {"w1"})
    for size in (*suite.sizes, joined_side(suite)):

        async def go(load: Load, size: int = size) -> dict[str, Any]:
            with power.watched(suite.card) as drawn:
                return {**await load.alone(size, 6), **drawn}

        suite.note(stage="joined", fp8=fp8, size=size, **with_load(cell, go, clients=1))
    for clients in (2, 8):
        measured(suite, cell, suite.sizes[0], stage="joined", clients=clients, fp8=fp8)
    suite.verb("undrain", "w2")
    await_open(cell, {"w1", "w2"})


def joined_cell(suite: Suite, fp8: str) -> Cell:
    """A worker on all cards, and a slice on the last of them."""
    limits = f"max_pixels = {joined_side(suite) ** 2}"
    name = "joined" if fp8 == "off" else "joined8"
    cell = suite.up_as(name, suite.joined(70.0, 60.0), limits, fp8=fp8)
    await_open(cell, {"w1", "w2"})
    return cell


def joined_side(suite: Suite) -> int:
    return suite.sizes[0] * (2 if suite.device != "cpu" else 1)


def joined_faults(suite: Suite, seconds: float = 3.0) -> None:
    """A worker on all cards beside a slice on the last of them, under load: every fault of each of
    its processes, and between them those of the slice."""
    cell = joined_cell(suite, "off")
    with loaded(cell, 6, suite.sizes[-2]) as load:
        for fault, worker in itertools.product(faults_of(suite), ("w1-1", "w2", "w1")):
            time.sleep(seconds)
            injected(suite, cell, load, fault, worker)
    suite.note(stage="joined-faults", failed=load.failed, drawn=load.drawn)


STAGES: dict[str, Callable[[Suite], None]] = {
    "model": make_model,
    "calibrate": calibrate,
    "serve": serve,
    "bare": bare,
    "gradio": gradio,
    "restart": restart,
    "mixed": mixed,
    "priority": priority,
    "fp8": fp8,
    "small": small_card,
    "faults": faults,
    "large-faults": large_faults,
    "slices": slices,
    "scale": scale,
    "joined": joined,
    "joined-fp8": functools.partial(joined, fp8="transformer"),
    "joined-faults": joined_faults,
}


class Counting(Load):
    """Counts what was drawn."""

    drawn = 0

    async def draw(
        self, size: int | str, more: str = "", **fields: Any
    ) -> tuple[float, httpx.Response]:
        answer = await super().draw(size, more, **fields)
        self.drawn += answer[1].status_code == 200
        return answer


def with_load(cell: Cell, go: Callable[[Load], Any], clients: int) -> dict[str, Any]:
    """What ``go`` returns, and how many of its requests failed."""

    async def run() -> dict[str, Any]:
        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(base_url=cell.url, timeout=300, limits=limits) as client:
            load = Load(client, "jpeg")
            return {**await go(load), "failed": load.failed}

    return asyncio.run(run())


@contextlib.contextmanager
def loaded(cell: Cell, clients: int, *sizes: int | str) -> Iterator[Counting]:
    """Clients that ask again and again for ``sizes`` in turns, in a thread of their own; all
    answered at the end."""
    over, ready, turns = threading.Event(), threading.Event(), itertools.cycle(sizes)
    holder: list[Counting] = []

    async def run() -> None:
        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(base_url=cell.url, timeout=300, limits=limits) as client:
            holder.append(Counting(client, "jpeg"))
            ready.set()

            async def ask() -> None:
                while not over.is_set():
                    await holder[0].draw(next(turns))

            await asyncio.gather(*(ask() for _ in range(clients)))

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    ready.wait()
    try:
        yield holder[0]
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def watched_memory(card: str) -> Iterator[list[int]]:
    """The most MiB of the card in use, by anybody."""
    most, over = [0], threading.Event()

    def watch() -> None:
        query = [
            "nvidia-smi",
            "-i",
            card,
            "--query-gpu=memory.used",
            "--format=csv,noheader,nounits",
        ]
        while not over.wait(0.2):
            text = subprocess.run(query, text=True, capture_output=True, check=False).stdout
            most[0] = max(most[0], int(text or 0))

    with beside(watch, over):
        yield most


@contextlib.contextmanager
def process_memory() -> Iterator[dict[int, int]]:
    """The most bytes that each process held of any card, as the driver counts them."""
    most: dict[int, int] = {}
    over = threading.Event()

    def watch() -> None:
        pynvml.nvmlInit()
        cards = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        while not over.wait(0.2):
            for card in cards:
                for each in pynvml.nvmlDeviceGetComputeRunningProcesses(card):
                    most[each.pid] = max(most.get(each.pid, 0), each.usedGpuMemory or 0)

    with beside(watch, over):
        yield most


def await_open(cell: Cell, workers: set[str]) -> None:
    """Until exactly ``workers`` take requests."""
    end = time.monotonic() + BACK_S
    while cell.open() != workers:
        if time.monotonic() > end:
            raise TimeoutError(f"{sorted(cell.open())} take requests, not {sorted(workers)}")
        time.sleep(0.05)


def settle(cell: Cell, worker: str) -> None:
    """Until supervisor counts the worker's start as one: whoever ends before is started again later
    each time."""
    process = processes.read(cell.pid(worker))
    if process is not None:
        time.sleep(max(0.0, STARTED_S - processes.age_s(process)))


def await_serving(cell: Cell, worker: str) -> None:
    """Until ``worker`` takes requests, as whichever process."""
    end = time.monotonic() + BACK_S
    while worker not in cell.open():
        if time.monotonic() > end:
            raise TimeoutError(f"{worker} is not back after {BACK_S:g} s")
        time.sleep(0.05)


def await_back(cell: Cell, worker: str, dead: int) -> None:
    """Until another process than ``dead`` serves as ``worker``."""
    end = time.monotonic() + BACK_S
    while time.monotonic() < end:
        with contextlib.suppress(LookupError):
            if cell.pid(worker) != dead and worker in cell.open():
                return
        time.sleep(0.05)
    raise TimeoutError(f"{worker} is not back after {BACK_S:g} s")


def totals(cell: Cell) -> dict[str, float]:
    """The counters of all workers together."""
    found: Counter[str] = Counter()
    for worker in cell.workers():
        found.update(counters(cell.layout.socket(worker)) or {})
    return dict(found)


def idle(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """The share of the drawing threads' time beside the pipeline."""
    busy_s, device_s = (after[key] - before[key] for key in ("busy_s", "device_s"))
    return {"idle_share": round(1 - device_s / busy_s, 4) if busy_s else 0.0}


def helper_of(pid: int) -> int:
    """The helper process of a worker; LookupError where it has none."""
    for other, fields in everybody():
        command = Path(f"/proc/{other}/cmdline").read_bytes().split(b"\0")
        if int(fields[PARENT]) == pid and b"worker.models.parallel.helper" in command:
            return other
    raise LookupError(f"process {pid} has no helper")


def left_of(pid: int) -> int:
    """How many live processes are left of the group of a worker that is dead."""
    return sum(int(f[GROUP]) == pid and f[STATE] not in "ZX" for _, f in everybody())


def everybody() -> Iterator[tuple[int, list[str]]]:
    """Every process of this machine, with its fields as by ``worker.coordination.processes``."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat(int(entry.name))) is not None:
            yield int(entry.name), fields


def optimisations(cell: Cell) -> dict[str, str]:
    transport = httpx.HTTPTransport(uds=str(cell.layout.socket("w1")))
    with httpx.Client(transport=transport, timeout=5.0) as client:
        given: dict[str, str] = client.get("http://worker/livez").json()["levers"]
    return given


def boot(cell: Cell) -> dict[str, float]:
    """Seconds of each stage of the latest start of w1, from its log."""
    stages: dict[str, float] = {}
    for line in cell.layout.log("w1").read_text().splitlines():
        with contextlib.suppress(ValueError, KeyError):
            entry = json.loads(line[line.index("{") :])  # after a progress bar, perhaps
            if entry["event"] == "started":
                stages = {}
            stages[entry["event"]] = entry["seconds"]
    return stages


def p95(values: list[float]) -> float:
    return round(statistics.quantiles(values, n=20, method="inclusive")[-1], 3)


def seconds_since(began: float) -> float:
    return round(time.monotonic() - began, 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path("/tmp/zimage-gpu"))
    parser.add_argument(
        "--model",
        type=Path,
        help=f"a folder, made in --home where there is none; or {RANDOM}: nothing on disk",
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"))
    parser.add_argument("--stages", default=",".join(STAGES), help=f"of {', '.join(STAGES)}")
    parser.add_argument("--seconds", default="60", help="of a saturated load; one, or by size")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of [model]")
    parser.add_argument("--sizes", default="1024,512,256", help="at least two, the largest first")
    parser.add_argument("--port", type=int, default=7960, help="and the next two")
    parser.add_argument("--device", default="0", help="the GPU's number; cpu to try the script")
    args = parser.parse_args()
    args.home.mkdir(exist_ok=True)
    model = args.model or args.home / "model"
    sizes = tuple(map(int, args.sizes.split(",")))
    seconds = itertools.cycle(map(float, args.seconds.split(",")))
    keys = dict(pair.split("=", 1) for pair in args.set)
    spans = dict(zip(sizes, seconds, strict=False))
    suite = Suite(
        args.home, args.out, model, sizes, spans, args.port, device=args.device, keys=keys
    )
    failed = 0
    try:
        for name in args.stages.split(","):
            try:
                STAGES[name](suite)
            except Exception as error:
                failed += 1
                traceback.print_exc()
                suite.note(stage=name, error=f"{type(error).__name__}: {error}"[-1500:])
    finally:
        suite.down()
    with contextlib.suppress(ImportError):  # without pygal
        from loadtest.gpu.plot import plot

        print(*plot(args.out), sep="\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
