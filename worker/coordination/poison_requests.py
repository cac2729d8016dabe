"""Poison: requests that a worker died of.

Suspect are those in its running step and those that it was handling outside its engine
(``inflight``); where some of them were struck before, those alone. Where the guard ended it,
it says why: a call that lasted too long is that of those in the step, an event loop that stood
still that of those being handled, and anything else nobody's.

``<var_dir>/strikes/<fingerprint>/`` holds an empty file for each such death, whose name tells it:
see ``strikes``. Files are forgotten ``ttl_s`` after they were made. All workers of a cell share the
folder.

Two deaths while alone refuse a request. A struck one is therefore drawn in steps of its own, and
while it is handled or drawn no other struck one is, in that worker. One that was late is drawn
alone with ``PATIENCE`` times the allowance, for perhaps its size takes longer than anybody foresaw;
late again, it is refused.

Two notice: the worker at which nginx replays the request, while its id still stands in the
heartbeat of the dead one; and the dead worker's successor, from the heartbeat that it inherits.
Where all workers of several died together, nobody is struck.
"""

import mmap
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.coordination.heartbeat import (
    DRAWING,
    Heartbeat,
    KillCause,
    Phase,
    Running,
    digest,
    read_heartbeat,
    read_kill,
)
from worker.coordination.inflight import read_in_flight
from worker.coordination.processes import is_alive, started_at
from worker.coordination.strikes import ALONE_LIMIT, Record, Strike

CLOSED_SOCKET = "closed.sock"
IN_STEP = DRAWING | {Phase.COMPILE}  # the first step of a shape compiles
_DYING_S = 0.5
_POLL_S = 0.02
_TOGETHER_S = 1.5
_CLOCK_TICK_NS = 100_000_000
_LOOK_EVERY_S = 0.01
"""A strike is seen so much later than it is made: much sooner than its request is sent again."""

_NEVER = 0


class PoisonRequests:
    """The strikes of a cell, seen from the worker called ``name``."""

    def __init__(
        self, var_dir: Path, run_dir: Path, pool_dir: Path, name: str, ttl_s: float
    ) -> None:
        self._folder = var_dir / "strikes"
        self._strikes_changed = _Changes(self._folder)
        self._pool = pool_dir
        self._run_dir = run_dir
        self._heartbeats_changed = _Changes(run_dir)
        self._name = name
        self._ttl_s = ttl_s
        self._empty_since = -1  # when the folder changed last, if it was empty afterwards
        self._mapped: list[mmap.mmap] = []  # the heartbeat files
        self._mapped_since = -1  # when their folder changed last, if they were mapped afterwards

    def inherit(self) -> int:
        """At boot, before the heartbeat is overwritten: strike what the predecessor died of."""
        path = self._run_dir / f"{self._name}.beat"
        heartbeat = read_heartbeat(path)
        self._sweep()
        if heartbeat is None:
            return 0
        blame = self._blame(path, heartbeat, alive=False)
        for fingerprint in blame.fingerprints:
            self._write(blame.strike, heartbeat, fingerprint)
        return len(blame.fingerprints)

    def surely_clean(self, request_id: str, arrived_at: float) -> bool:
        """Whether ``arrive`` would find nothing, as far as memory tells: no worker holds this
        request and nobody has a strike. Reads no disk, so it may be asked on the event loop."""
        return self._nobody_struck() and not self._is_held(digest(request_id))

    def _nobody_struck(self) -> bool:
        return self._strikes_changed.at() in (_NEVER, self._empty_since)

    def _is_held(self, request: bytes) -> bool:
        changed_at = self._heartbeats_changed.at()
        if changed_at != self._mapped_since:
            self._mapped = [mapped for path in _heartbeats(self._run_dir) for mapped in _map(path)]
            self._mapped_since = changed_at if _settled(changed_at) else -1
        return any(_holds(mapped[:], request) for mapped in self._mapped)

    async def ask_others(self, fingerprint: str) -> None:
        """Learn what others than this host's workers know of a request: there are none."""

    def arrive(self, request_id: str, fingerprint: str) -> Record:
        """Look whether this is the replay of a request that a worker died of, and what is known.

        Blocks for up to half a second where a worker that holds the request is just dying.
        """
        self._witness(digest(request_id))
        self._look_whether_empty()
        return self.record(fingerprint)

    def _look_whether_empty(self) -> None:
        changed_at = self._strikes_changed.look()
        empty = _settled(changed_at) and not _files(self._folder)
        self._empty_since = changed_at if empty else -1

    def record(self, fingerprint: str) -> Record:
        """The unexpired strikes of ``fingerprint``."""
        found = self._known(self._folder / digest(fingerprint).hex())
        crashes = sorted(a for s, a in found if s.alone and not s.late_s)
        too_slow = [a for s, a in found if s.alone and s.patient]
        refused_for = min(too_slow, default=max(crashes[:ALONE_LIMIT], default=self._ttl_s))
        return Record(
            strikes=len(found),
            alone=sum(strike.alone for strike, _ in found),
            crashes_alone=len(crashes),
            late_s=max((strike.late_s for strike, _ in found), default=0),
            too_slow=bool(too_slow),
            forgotten_in_s=self._ttl_s - refused_for,
        )

    def _known(self, folder: Path) -> list[tuple[Strike, float]]:
        """The unexpired strikes in ``folder``, one for each death, and their ages in seconds."""
        known: dict[tuple[str, int], tuple[Strike, float]] = {}
        for path, age_s in self._unexpired(folder):
            if strike := Strike.of(path.name):
                known.setdefault(strike.event, (strike, age_s))
        return list(known.values())

    def another_is_open(self) -> bool:
        """Whether some other worker is in the pool, or this one is the only one of its cell."""
        others = [p for p in _links(self._pool) if p.name != f"{self._name}.sock"]
        return not others or any(self._is_open(p) for p in others)

    def _is_open(self, gate: Path) -> bool:
        if gate.readlink().name == CLOSED_SOCKET:
            return False
        # The guard needs a moment to close the gate of a worker that has just died.
        heartbeat = read_heartbeat(self._run_dir / f"{gate.stem}.beat")
        return (
            heartbeat is not None
            and is_alive(heartbeat.pid, heartbeat.since)
            and not heartbeat.overdue()
        )

    def _witness(self, request: bytes) -> None:
        deadline = time.monotonic() + _DYING_S
        for path in _heartbeats(self._run_dir):
            while (heartbeat := _holding(path, request)) is not None and path.stem != self._name:
                alive = is_alive(heartbeat.pid, heartbeat.since)
                if not alive or heartbeat.overdue():
                    blame = self._blame(path, heartbeat, alive=alive)
                    for fingerprint in blame.of(request):
                        self._write(blame.strike, heartbeat, fingerprint)
                    break
                # nginx sees the socket close a moment before the process is gone.
                if time.monotonic() > deadline:
                    break
                time.sleep(_POLL_S)

    def _blame(self, path: Path, heartbeat: Heartbeat, *, alive: bool) -> "_Blame":
        """Who is struck for the end of the worker whose heartbeat ``heartbeat`` stands at ``path``.
        ``alive``: it is overdue, and the guard is about to end it."""
        kill = read_kill(path)
        cause: KillCause | None = "overdue" if alive else None
        if kill is not None and kill.is_of(heartbeat):
            # It was judged by a call that was over when the signal came.
            passed = kill.cause == "overdue" and kill.since != heartbeat.since
            cause = "other" if passed else kill.cause
        suspects = _suspects(heartbeat, read_in_flight(path), cause)
        alone = len({suspect.request for suspect in suspects}) == 1
        alone &= heartbeat.alone or not any(suspect in heartbeat.running for suspect in suspects)
        late_s = max(1, round(heartbeat.allowance_s)) if cause == "overdue" else 0
        return _Blame(Strike(path.stem, heartbeat.pid, alone, late_s, heartbeat.patient), suspects)

    def _write(self, strike: Strike, heartbeat: Heartbeat, fingerprint: bytes) -> None:
        if self._all_died(strike.worker, heartbeat):
            return
        folder = self._folder / fingerprint.hex()
        folder.mkdir(parents=True, exist_ok=True)
        if all(known.event != strike.event for known, _ in self._known(folder)):
            (folder / strike.name).touch()

    def _all_died(self, worker: str, heartbeat: Heartbeat) -> bool:
        """Whether no other worker of several has outlived ``worker``: then it was a power cut or
        an operator, for a poison ends one worker at a time."""
        paths = [path for path in _heartbeats(self._run_dir) if path.stem != worker]
        others = [other for path in paths if (other := read_heartbeat(path)) is not None]
        # One that was dead long before tells nothing.
        pids = [other.pid for other in others if other.since > heartbeat.since - _TOGETHER_S]
        starts = [started_at(pid) for pid in (*pids, os.getpid())]
        return bool(pids) and not any(at is not None and at < heartbeat.since for at in starts)

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

    def _folders(self) -> list[Path]:
        """One for each request that has strikes."""
        return _files(self._folder)

    def _sweep(self) -> None:
        for folder in self._folders():
            if not list(self._unexpired(folder)):
                _remove_if_empty(folder)


@dataclass(frozen=True)
class _Blame:
    """Each of ``suspects`` gets ``strike``."""

    strike: Strike
    suspects: Sequence[Running]

    @property
    def fingerprints(self) -> set[bytes]:
        return {suspect.fingerprint for suspect in self.suspects}

    def of(self, request: bytes) -> set[bytes]:
        return {each.fingerprint for each in self.suspects if each.request == request}


def _holds(table: bytes, request: bytes) -> bool:
    """``request in table``, at once: the table is mostly zeros, and those ``in`` passes one by one
    where a digest has one, too. A single byte is found many at a time."""
    rarest = max(request)
    offset = request.index(rarest)
    at = table.find(rarest, offset)
    while at >= 0:
        if table.startswith(request, at - offset):
            return True
        at = table.find(rarest, at + 1)
    return False


def _suspects(
    heartbeat: Heartbeat, handled: Sequence[Running], cause: KillCause | None
) -> Sequence[Running]:
    drawn = heartbeat.running if heartbeat.phase in IN_STEP else ()
    if cause == "overdue":
        return drawn
    if cause == "other" or heartbeat.phase is Phase.ENDED:
        return ()
    suspects = [*handled] if cause == "silent" else [*drawn, *handled]
    # One of those that were there before, or else any of them.
    return [suspect for suspect in suspects if suspect.struck] or suspects


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
            self._changed_at = os.stat(self._folder).st_mtime_ns  # noqa: PTH116 — takes half as long
        except FileNotFoundError:
            self._changed_at = _NEVER
        return self._changed_at


def _holding(path: Path, request: bytes) -> Heartbeat | None:
    heartbeat = read_heartbeat(path)
    if heartbeat is None:
        return None
    inside = [*(heartbeat.running if heartbeat.phase in IN_STEP else ()), *read_in_flight(path)]
    return heartbeat if any(each.request == request for each in inside) else None


def _heartbeats(folder: Path) -> list[Path]:
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
