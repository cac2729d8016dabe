"""What a scenario plays on: a running cell, Locust beside it, and somebody who watches."""

import contextlib
import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy import output
from deploy.config import ROOT, ClusterConfig
from deploy.host import processes
from loadtest import chaos, measures, record
from loadtest.auth import KEY_VARIABLE
from loadtest.chaos import Injected
from loadtest.faults import Cell
from loadtest.faults.catalogue import FAULTS
from loadtest.observer import Observer
from loadtest.record import Record
from loadtest.run_file import Mark, Part

_LOADTEST = Path(__file__).parent
_STOP_TIMEOUT_S = 720
_ANSWER_S = 900.0
_REST_S = 3.0


class RunnerError(Exception):
    """The scenario cannot be played here; the message says what is missing."""


@dataclass
class Options:
    """How large and how long; 0 and empty: the scenario's own."""

    users: int = 0
    duration_s: float = 0.0
    every_s: float = 10.0
    requests: int = 10_000
    sizes: str = ""
    steps: int = 0
    seed: int = 0
    faults: tuple[str, ...] = ()
    max_hold_s: float = math.inf


@dataclass
class Runner:
    cell: Cell
    config: ClusterConfig
    config_path: Path
    folder: Path
    options: Options
    observer: Observer
    measured: dict[str, float] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    faults: list[Injected] = field(default_factory=list)

    @property
    def _stop_file(self) -> Path:
        return self.folder / "stop"

    @property
    def requests_file(self) -> Path:
        return self.folder / "requests.jsonl"

    @contextlib.contextmanager
    def load(
        self, users: int, duration_s: float, *arguments: str, file: str = "locustfile.py"
    ) -> Iterator[Part]:
        """Locust for ``duration_s`` from the first request on; leaves when all are answered.

        ``arguments`` are Locust's: names of users, options. The part is measured at the end.
        """
        part_file = self.folder / f"part-{len(self.parts)}.jsonl"
        command = [sys.executable, "-m", "locust", "-f", str(_LOADTEST / file)]
        command += ["--host", self.cell.url, "--headless", "--only-summary", "-u", str(users)]
        command += ["-r", str(users), "-t", f"{duration_s:.0f}s", "--loglevel", "WARNING"]
        command += ["--stop-timeout", str(_STOP_TIMEOUT_S), "--records", str(part_file)]
        command += ["--sizes", self.options.sizes] if self.options.sizes else []
        command += ["--steps", str(self.options.steps)] if self.options.steps else []
        command += ["--loose"] if self._loose() else []
        command += ["--stop-file", str(self._stop_file)]
        entry = self.cell.entry
        command += ["--ca", entry.ca] if entry.ca else []
        self._stop_file.unlink(missing_ok=True)
        with (self.folder / "locust.log").open("a") as log:
            locust = subprocess.Popen(
                [*command, *arguments],
                cwd=ROOT,
                env={**os.environ, KEY_VARIABLE: entry.key},
                stdout=log,
                stderr=log,
            )
        part = Part("load", time.time(), time.time())
        self.parts.append(part)
        try:
            yield part
            part.end = self._wait(locust, part.start + duration_s)
        finally:
            if locust.poll() is None:
                locust.kill()
                locust.wait()
        self._measure(part, part_file)

    def play(
        self, name: str, users: int, duration_s: float, *arguments: str, file: str = "locustfile.py"
    ) -> Part:
        """Load and nothing else."""
        with self.load(users, duration_s, *arguments, file=file) as part:
            part.name = name
        return part

    def split(self, part: Part, every_s: float, name: Callable[[int], str]) -> list[Part]:
        """``part`` in pieces, by when requests were sent; ``name`` of each by its number."""
        pieces = measures.of_pieces(self.records(), part.start, every_s)
        parts = [Part(name(k), *piece) for k, piece in enumerate(pieces)]
        self.parts[self.parts.index(part) :] = parts
        return parts

    def stop_load(self) -> None:
        """Users finish what they wait for and send no more."""
        self._stop_file.touch()

    def inject_until(self, end: float) -> None:
        """A random fault every ``every_s``, overlapping where one takes long, never on the last
        worker of the pool, nor where another has yet to be undone. Returns when all are over."""
        rng, names = random.Random(self.options.seed), self._faults()
        running: dict[threading.Thread, str] = {}
        while time.time() + self.options.every_s < end:
            time.sleep(self.options.every_s)
            hit = {worker for thread, worker in running.items() if thread.is_alive()}
            for name in rng.sample(names, len(names)):
                if free := sorted(set(chaos.targets(self.cell, FAULTS[name])) - hit):
                    worker = rng.choice(free)
                    thread = threading.Thread(target=self._inject, args=(name, worker))
                    running[thread] = worker
                    thread.start()
                    break
        for thread in running:
            thread.join()

    def inject_each(self, *names: str, heal_s: float = 180.0) -> None:
        """Each fault in turn, or ``names``, on a whole cell; what users may see of comes last."""
        rng = random.Random(self.options.seed)
        for name in names or self._faults() + self._seen():
            if not processes.wait_for(self.cell.whole, heal_s):
                raise RunnerError(f"the cell is not whole {heal_s:g} s after a fault")
            time.sleep(_REST_S)
            self._inject(name, rng.choice(chaos.targets(self.cell, FAULTS[name])))

    def zimage(self, text: str, *arguments: str) -> Mark:
        """Run the command line beside the load and mark it in the report."""
        mark = Mark(time.time(), text, time.time())
        done = subprocess.run(
            [sys.executable, "-m", "deploy.cli.app", *arguments],
            cwd=ROOT,
            env={**os.environ, "ZIMAGE_CONFIG": str(self.config_path)},
            capture_output=True,
            text=True,
            timeout=_ANSWER_S,
        )
        mark.end = time.time()
        mark.error = done.stderr.strip()[-500:] if done.returncode else ""
        self.marks.append(mark)
        output.say(f"  {text}: {'✗ ' + mark.error if mark.error else 'done'}")
        return mark

    def records(self) -> list[Record]:
        return record.read([self.requests_file])

    def _inject(self, name: str, worker: str) -> None:
        done = chaos.inject(self.cell, name, worker, self.options.max_hold_s)
        self.faults.append(done)
        output.say(f"  {'✓' if done.healed else '✗'} {chaos.describe(done)}")

    def _faults(self) -> list[str]:
        if self.options.faults:
            return sorted(self.options.faults)
        return sorted(n for n, f in FAULTS.items() if f.unseen and not f.missing())

    def _seen(self) -> list[str]:
        everything = not self.options.faults
        return sorted(n for n, f in FAULTS.items() if everything and not f.unseen)

    def _wait(self, locust: "subprocess.Popen[bytes]", until: float) -> float:
        """When the last user had stopped sending."""
        locust.wait(max(0.0, until - time.time()) + _STOP_TIMEOUT_S)
        if locust.returncode not in (0, 1):
            log = (self.folder / "locust.log").read_text()[-1000:]
            raise RunnerError(f"Locust ended with {locust.returncode}: {log}")
        return time.time()

    def _measure(self, part: Part, part_file: Path) -> None:
        records = record.read([part_file])
        if not records:
            raise RunnerError(f"Locust sent nothing: see {self.folder}/locust.log")
        part.start, part.end = records[0].at, max(r.end for r in records)
        part.measured = measures.of_users(records, part.end - part.start)
        with self.requests_file.open("ab") as all_of_them:
            all_of_them.write(part_file.read_bytes())
        part_file.unlink()
        self._stop_file.unlink(missing_ok=True)

    def _loose(self) -> bool:
        workers = self.config.workers
        return self.config.served[0].dtype in {"bfloat16", "float16"} or (
            self.config.served[0].dtype == "auto"
            and any(Path("/dev").glob("nvidia[0-9]*"))
            and (workers == "auto" or any(group.device != "cpu" for group in workers))
        )


def drained(points: Sequence[tuple[float, int]], since: float, to: int = 0) -> float | None:
    """Seconds from ``since`` until no more than ``to`` requests waited or were drawn."""
    return next((at - since for at, count in points if at >= since and count <= to), None)
