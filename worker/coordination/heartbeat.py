"""The heartbeat file: what a worker is doing, readable when its event loop cannot answer.

A worker maps ``<run_dir>/<name>.beat`` and writes its phase, since when, how long that phase may
last, a step count, and the requests inside the running step. Imports, loading and compilation
hold the GIL for seconds; a mapped file can be read all the while, and it outlives the process:
after a kill it still says which requests were in the step that was running.

One thread writes at a time. A sequence number that is odd during a write lets readers in other
processes detect a torn read.
"""

import functools
import hashlib
import json
import mmap
import os
import struct
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Literal, NamedTuple

_MAGIC = b"ZBEAT001"
_HEAD = struct.Struct("<8sQ")  # magic, sequence
_BODY = struct.Struct("<IIddQII")  # pid, phase, since, allowance, steps, flags, entries
_ENTRY = struct.Struct("<16s16s")  # digests of request id and fingerprint
_ALONE, _PATIENT, _STRUCK = 1, 2, 4  # flags
MAX_ENTRIES = 128
HEARTBEAT_BYTES = _HEAD.size + _BODY.size + MAX_ENTRIES * _ENTRY.size
IN_FLIGHT_BYTES = 64 * 40
"""Behind the heartbeat, for ``inflight``. A file of an older version has none of it."""


class Phase(IntEnum):
    """What the worker is doing. ``ENDED`` is written by an orderly exit only."""

    BOOT = 0
    LOAD = 1
    COMPILE = 2
    IDLE = 3
    ENCODE = 4
    STEP = 5
    DECODE = 6
    ENDED = 7


KillCause = Literal["overdue", "silent", "other"]
"""The phase lasted too long; the event loop did not answer, though the phases went on; or neither
the step nor a request is to blame."""

DRAWING = frozenset({Phase.ENCODE, Phase.STEP, Phase.DECODE})


class Running(NamedTuple):
    """One request inside the running step, as digests (16 bytes each). ``struck``: it is suspect
    already."""

    request: bytes
    fingerprint: bytes
    struck: bool = False


@dataclass(frozen=True)
class Heartbeat:
    """One consistent reading. ``since`` is on the system-wide monotonic clock, in seconds.

    ``alone``: the step is one request's. ``patient``: its allowance is a multiple of the usual one,
    since a shorter one was over before. ``struck``: a request in it is suspect already.
    """

    pid: int
    phase: Phase
    since: float
    allowance_s: float
    steps: int
    alone: bool
    running: tuple[Running, ...]
    patient: bool = False
    struck: bool = False

    def age_s(self, now: float | None = None) -> float:
        """Seconds since the phase (or the step within it) began."""
        return (time.monotonic() if now is None else now) - self.since

    def overdue(self, now: float | None = None) -> bool:
        """Whether the phase has lasted longer than its allowance."""
        return self.phase is not Phase.ENDED and self.age_s(now) > self.allowance_s


@functools.lru_cache(256)  # each request is written several times
def digest(text: str) -> bytes:
    """16 bytes that stand for ``text`` in the file."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class HeartbeatFile:
    """The worker's side. Create it once at start; a predecessor's record is overwritten."""

    def __init__(self, path: Path) -> None:
        self.mapped = _create(path)
        self._pid = os.getpid()
        self._sequence = 0
        self._steps = 0
        self._phase = Phase.BOOT
        self.enter(Phase.BOOT, 60.0)

    @property
    def phase(self) -> Phase:
        return self._phase

    def enter(
        self,
        phase: Phase,
        allowance_s: float,
        running: Iterable[Running] = (),
        *,
        alone: bool = False,
        patient: bool = False,
        struck: bool = False,
    ) -> None:
        """Record that ``phase`` begins now and may last ``allowance_s`` seconds."""
        entries = list(running)[:MAX_ENTRIES]
        self._steps += phase is Phase.STEP
        self._phase = phase
        flags = _ALONE * alone | _PATIENT * patient | _STRUCK * struck
        body = _BODY.pack(
            self._pid, phase, time.monotonic(), allowance_s, self._steps, flags, len(entries)
        )
        self._write(body + b"".join(_ENTRY.pack(r.request, r.fingerprint) for r in entries))

    def end(self) -> None:
        """Record an orderly exit."""
        self.enter(Phase.ENDED, 0.0)

    def _write(self, data: bytes) -> None:
        self._sequence += 1
        _HEAD.pack_into(self.mapped, 0, _MAGIC, self._sequence)
        self.mapped[_HEAD.size : _HEAD.size + len(data)] = data
        self._sequence += 1
        _HEAD.pack_into(self.mapped, 0, _MAGIC, self._sequence)


@dataclass(frozen=True)
class Kill:
    """Why the guard ended the process ``pid``; ``since`` is that of the phase it was in.

    Written before the signal is sent, so that whoever finds the worker dead knows what it died of.
    Where nothing is written it died by itself, or at a stranger's hands.
    """

    pid: int
    since: float
    cause: KillCause

    def is_of(self, heartbeat: "Heartbeat") -> bool:
        """Whether it was the process of ``heartbeat``."""
        return self.pid == heartbeat.pid


def write_kill(beat_path: Path, kill: Kill) -> None:
    """Leave ``kill`` beside the heartbeat at ``beat_path``."""
    path = _kill_path(beat_path)
    fresh = path.with_suffix(".kill.new")
    fresh.write_text(json.dumps(asdict(kill)), encoding="utf-8")
    fresh.replace(path)


def read_kill(beat_path: Path) -> Kill | None:
    """The guard's last kill of this worker; None where there was none or nothing can be read."""
    try:
        return Kill(**json.loads(_kill_path(beat_path).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _kill_path(beat_path: Path) -> Path:
    return beat_path.with_suffix(".kill")


def read_heartbeat(path: Path) -> Heartbeat | None:
    """The current record at ``path``, or None where there is none or it stays torn."""
    try:
        with path.open("rb", buffering=0) as file:
            for _ in range(5):
                file.seek(0)
                data = file.read(HEARTBEAT_BYTES)
                file.seek(0)
                unchanged = file.read(_HEAD.size) == data[: _HEAD.size]
                if unchanged and (heartbeat := _parse(data)) is not None:
                    return heartbeat
    except OSError:
        return None
    return None


def _parse(data: bytes) -> Heartbeat | None:
    if len(data) < HEARTBEAT_BYTES:
        return None
    magic, sequence = _HEAD.unpack_from(data)
    if magic != _MAGIC or sequence % 2:
        return None
    pid, phase, since, allowance_s, steps, flags, count = _BODY.unpack_from(data, _HEAD.size)
    start = _HEAD.size + _BODY.size
    entries = _ENTRY.iter_unpack(data[start : start + min(count, MAX_ENTRIES) * _ENTRY.size])
    struck = bool(flags & _STRUCK)
    return Heartbeat(
        pid,
        Phase(phase),
        since,
        allowance_s,
        steps,
        bool(flags & _ALONE),
        tuple(Running(request, fingerprint, struck) for request, fingerprint in entries),
        bool(flags & _PATIENT),
        struck,
    )


def _create(path: Path) -> mmap.mmap:
    # A new file instead of truncation: a reader that still maps the old one keeps it whole.
    fresh = path.with_suffix(".beat.new")
    with fresh.open("w+b") as file:
        size = HEARTBEAT_BYTES + IN_FLIGHT_BYTES
        os.posix_fallocate(file.fileno(), 0, size)
        mapped = mmap.mmap(file.fileno(), size)
    fresh.replace(path)
    return mapped
