"""What the cell did during a run, sampled by a thread: worker states, queue, memory, files."""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from deploy.host import processes
from loadtest.faults import Cell

_LANES_EVERY_S = 0.2
_RESOURCES_EVERY_S = 2.0


@dataclass
class Span:
    """A worker was in ``state`` (the guard's word, or "in" while in the pool)."""

    state: str
    start: float
    end: float


@dataclass
class Sample:
    """Resources of one program at one moment; nginx's processes are counted together."""

    at: float
    rss_mib: float = 0.0
    files: int = 0
    threads: int = 0


@dataclass
class Observer:
    """From ``with`` to its end. Times are seconds since the epoch."""

    cell: Cell
    lanes: dict[str, list[Span]] = field(default_factory=dict)
    queue: list[tuple[float, int]] = field(default_factory=list)
    """Requests that waited or were drawn in the whole cell."""
    resources: dict[str, list[Sample]] = field(default_factory=dict)
    temporary_files: list[tuple[float, int]] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Observer":
        for look, every_s in (
            (self._look_at_workers, _LANES_EVERY_S),
            (self._look_at_resources, _RESOURCES_EVERY_S),
        ):
            thread = threading.Thread(target=self._repeat, args=(look, every_s), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, look: Callable[[], None], every_s: float) -> None:
        while not self._over.wait(every_s):
            # A file that is being replaced or a process that has just ended: next time.
            with contextlib.suppress(OSError, ValueError, KeyError, LookupError):
                look()

    def _look_at_workers(self) -> None:
        now, state, pool = time.time(), self.cell.state(), self.cell.open()
        for worker in state["workers"]:
            word = "in" if worker["name"] in pool else worker["state"]
            spans = self.lanes.setdefault(worker["name"], [])
            if spans and spans[-1].state == word:
                spans[-1].end = now
                continue
            if spans:
                spans[-1].end = now
            spans.append(Span(word, now, now))
        self.queue.append((now, sum(w["queued"] + w["running"] for w in state["workers"])))

    def _look_at_resources(self) -> None:
        now, found = time.time(), dict[str, Sample]()
        workers = {self.cell.pid(name): name for name in self.cell.workers()}
        for process in processes.members(self.cell.layout.processes):
            name = workers.get(process.pid) or _name(process.command)
            with contextlib.suppress(psutil.Error):
                _add(found.setdefault(name, Sample(now)), process.pid)
        for name, sample in found.items():
            self.resources.setdefault(name, []).append(sample)
        folders = (self.cell.layout.tmp_dir, self.cell.layout.images_dir)
        count = sum(path.is_file() for folder in folders for path in folder.rglob("*"))
        self.temporary_files.append((now, count))


def _name(command: str) -> str:
    for name in ("nginx", "guard", "supervisord"):
        if name in command:
            return name
    return "other"


def _add(sample: Sample, pid: int) -> None:
    process = psutil.Process(pid)
    sample.rss_mib += process.memory_info().rss / 2**20
    sample.threads += process.num_threads()
    sample.files += process.num_fds()
