"""Poison: requests that were in the step of a worker when it died.

``<var_dir>/strikes/<fingerprint>/`` holds an empty file ``<worker>-<pid>[-alone]`` for each such
death; ``alone`` says that the request shared its step with nobody. The name tells the event, so
whoever notices it first may record it and a second record changes nothing. Files are forgotten
``ttl_s`` after they were made. All workers of a cell share the folder.

Two notice: the worker at which nginx replays the request, while its id still stands in the
heartbeat of the dead one; and the dead worker's successor, from the heartbeat that it inherits.
Where all workers of several died together, nobody is struck.
"""

import mmap
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from worker.beat import DRAWING, Beat, Phase, digest, read_beat
from worker.processes import is_alive, started_at

ALONE_LIMIT = 2
CLOSED_SOCKET = "closed.sock"
IN_STEP = DRAWING | {Phase.COMPILE}  # the first step of a shape compiles
_DYING_S = 0.5
_POLL_S = 0.02
_TOGETHER_S = 1.5
_CLOCK_TICK_NS = 100_000_000
_LOOK_EVERY_S = 0.01
"""A strike is seen so much later than it is made: much sooner than its request is sent again."""

_NEVER = 0


@dataclass(frozen=True)
class Record:
    """What is remembered of one request: strikes, strikes while alone, seconds to forgiveness."""

    strikes: int
    alone: int
    forgotten_in_s: float

    @property
    def refused(self) -> bool:
        return self.alone >= ALONE_LIMIT


CLEAN = Record(0, 0, 0.0)


class Strikes:
    """The strikes of a cell, seen from the worker called ``name``."""

    def __init__(
        self, var_dir: Path, run_dir: Path, pool_dir: Path, name: str, ttl_s: float
    ) -> None:
        self._folder = var_dir / "strikes"
        self._strikes_changed = _Changes(self._folder)
        self._pool = pool_dir
        self._run_dir = run_dir
        self._beats_changed = _Changes(run_dir)
        self._name = name
        self._ttl_s = ttl_s
        self._empty_since = -1  # when the folder changed last, if it was empty afterwards
        self._mapped: list[mmap.mmap] = []  # the heartbeat files
        self._mapped_since = -1  # when their folder changed last, if they were mapped afterwards

    def inherit(self) -> int:
        """At boot, before the heartbeat is overwritten: strike what the predecessor was drawing."""
        beat = read_beat(self._run_dir / f"{self._name}.beat")
        self._sweep()
        if beat is None or beat.phase not in IN_STEP:
            return 0
        for running in beat.running:
            self._strike(self._name, beat, running.fingerprint)
        return len(beat.running)

    def surely_clean(self, request_id: str) -> bool:
        """Whether ``arrive`` would find nothing, as far as memory tells: no worker holds this
        request and nobody has a strike. Reads no disk, so it may be asked on the event loop."""
        return self._nobody_struck() and not self._is_held(digest(request_id))

    def _nobody_struck(self) -> bool:
        return self._strikes_changed.at() in (_NEVER, self._empty_since)

    def _is_held(self, request: bytes) -> bool:
        changed_at = self._beats_changed.at()
        if changed_at != self._mapped_since:
            self._mapped = [mapped for path in _beats(self._run_dir) for mapped in _map(path)]
            self._mapped_since = changed_at if _settled(changed_at) else -1
        return any(mapped.find(request, 0) >= 0 for mapped in self._mapped)

    def arrive(self, request_id: str, fingerprint: str) -> Record:
        """Look whether this is the replay of a request that a worker died of, and what is known.

        Blocks for up to half a second where a worker that holds the request is just dying.
        """
        self._witness(digest(request_id), digest(fingerprint))
        self._look_whether_empty()
        return self.record(fingerprint)

    def _look_whether_empty(self) -> None:
        changed_at = self._strikes_changed.look()
        empty = _settled(changed_at) and not _files(self._folder)
        self._empty_since = changed_at if empty else -1

    def record(self, fingerprint: str) -> Record:
        """The unexpired strikes of ``fingerprint``."""
        found = list(self._unexpired(self._folder / digest(fingerprint).hex()))
        alone = [age_s for path, age_s in found if path.name.endswith("-alone")]
        youngest = sorted(alone)[:ALONE_LIMIT]
        forgotten_in_s = self._ttl_s - max(youngest, default=self._ttl_s)
        return Record(len(found), len(alone), forgotten_in_s)

    def another_is_open(self) -> bool:
        """Whether some other worker is in the pool, or this one is the only one of its cell."""
        others = [p for p in _links(self._pool) if p.name != f"{self._name}.sock"]
        return not others or any(self._is_open(p) for p in others)

    def _is_open(self, gate: Path) -> bool:
        if gate.readlink().name == CLOSED_SOCKET:
            return False
        # The guard needs a moment to close the gate of a worker that has just died.
        beat = read_beat(self._run_dir / f"{gate.stem}.beat")
        return beat is not None and is_alive(beat.pid, beat.since) and not beat.overdue()

    def _witness(self, request: bytes, fingerprint: bytes) -> None:
        deadline = time.monotonic() + _DYING_S
        for path in _beats(self._run_dir):
            while (beat := _holding(path, request)) is not None and path.stem != self._name:
                if not is_alive(beat.pid, beat.since) or beat.overdue():
                    self._strike(path.stem, beat, fingerprint)
                    break
                # nginx sees the socket close a moment before the process is gone.
                if time.monotonic() > deadline:
                    break
                time.sleep(_POLL_S)

    def _strike(self, worker: str, beat: Beat, fingerprint: bytes) -> None:
        if self._all_died(worker, beat):
            return
        folder = self._folder / fingerprint.hex()
        folder.mkdir(parents=True, exist_ok=True)
        list(self._unexpired(folder))
        path = folder / (f"{worker}-{beat.pid}" + ("-alone" if beat.alone else ""))
        if not path.exists():
            path.touch()

    def _all_died(self, worker: str, beat: Beat) -> bool:
        """Whether no other worker of several has outlived ``worker``: then it was a power cut or
        an operator, for a poison ends one worker at a time."""
        paths = [path for path in _beats(self._run_dir) if path.stem != worker]
        others = [other for path in paths if (other := read_beat(path)) is not None]
        # One that was dead long before tells nothing.
        pids = [other.pid for other in others if other.since > beat.since - _TOGETHER_S]
        starts = [started_at(pid) for pid in (*pids, os.getpid())]
        return bool(pids) and not any(at is not None and at < beat.since for at in starts)

    def _unexpired(self, folder: Path) -> Iterator[tuple[Path, float]]:
        now = time.time()
        for path in _files(folder):
            try:
                age_s = now - path.stat().st_mtime
            except FileNotFoundError:
                continue
            if age_s < self._ttl_s:
                yield path, age_s
            else:
                path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        for folder in _files(self._folder):
            if not list(self._unexpired(folder)):
                _remove_if_empty(folder)


class _Changes:
    """When ``folder`` changed last. Every request asks, so the disk is not asked each time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changed_at = _NEVER
        self._look_at = 0.0

    def at(self) -> int:
        """In nanoseconds since the epoch; ``_NEVER`` where there is no such folder."""
        return self.look() if time.monotonic() >= self._look_at else self._changed_at

    def look(self) -> int:
        """The same, as it is now."""
        self._look_at = time.monotonic() + _LOOK_EVERY_S
        try:
            self._changed_at = self._folder.stat().st_mtime_ns
        except FileNotFoundError:
            self._changed_at = _NEVER
        return self._changed_at


def _holding(path: Path, request: bytes) -> Beat | None:
    beat = read_beat(path)
    if beat is None or beat.phase not in IN_STEP:
        return None
    return beat if any(r.request == request for r in beat.running) else None


def _beats(folder: Path) -> list[Path]:
    names = os.listdir(folder)  # noqa: PTH208 — a Path of every name costs more than the reading
    return [folder / name for name in names if name.endswith(".beat")]


def _map(path: Path) -> list[mmap.mmap]:
    try:
        with path.open("rb") as file:
            return [mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)]
    except (FileNotFoundError, ValueError):  # gone, or empty
        return []


def _settled(changed_at: int) -> bool:
    """Whether a further change would show: it has another time by the file system's clock."""
    return time.time_ns() - changed_at > _CLOCK_TICK_NS


def _files(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _links(folder: Path) -> list[Path]:
    return [p for p in _files(folder) if p.is_symlink()]


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return  # another worker has just struck it
