"""The cell's processes as the kernel sees them, even when supervisord is gone.

supervisord leads a session of its own, and all that it starts stays in it. So the session's
number, written down once at start, finds every process of the cell: workers whose supervisord was
killed, nginx workers whose master was. The leader's start time and the boot's id tell it from
a later session that happens to have the same number. An nginx that outlives supervisord is adopted
by the next one and stays in the old session, so sessions are remembered while they have members.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.installation import BASE
from worker.coordination.processes import GROUP, PARENT, SESSION, START_TIME, STATE, end_with, stat


@dataclass(frozen=True)
class Process:
    """``started`` is in clock ticks since boot; with the pid it names one process for good."""

    pid: int
    started: int
    session: int
    group: int
    parent: int
    zombie: bool

    @property
    def command(self) -> str:
        try:
            words = Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return ""
        return " ".join(word.decode(errors="replace") for word in words if word)

    @property
    def alive(self) -> bool:
        now = read(self.pid)
        return now is not None and now.started == self.started and not now.zombie

    def send(self, signum: signal.Signals, *, group: bool = False) -> None:
        """Signal the process, or its whole group, if it is still the one that was read."""
        if self.alive:
            with suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.pid, signum)


@dataclass(frozen=True)
class Identity:
    """One process for good, over a reboot, too: as it is written down in files."""

    boot: str
    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> "Identity":
        """``ProcessLookupError`` where there is no process ``pid``."""
        process = read(pid)
        if process is None:
            raise ProcessLookupError(pid)
        return cls(_boot(), pid, process.started)

    @property
    def alive(self) -> bool:
        now = read(self.pid) if self.boot == _boot() else None
        return now is not None and now.started == self.started and not now.zombie


def read(pid: int) -> Process | None:
    """The process ``pid``, or None where there is none."""
    fields = stat(pid)
    if fields is None:
        return None
    places = (START_TIME, SESSION, GROUP, PARENT)
    started, session, group, parent = (int(fields[place]) for place in places)
    return Process(pid, started, session, group, parent, fields[STATE] in "ZX")


def age_s(process: Process) -> float:
    """Seconds since ``process`` was started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - process.started / os.sysconf("SC_CLK_TCK")


def record(path: Path, pid: int, **note: str) -> None:
    """Write down that ``pid`` leads the cell's session; ``note`` says whose it is."""
    leader = read(pid)
    if leader is None:
        raise ProcessLookupError(pid)
    earlier = [old for old in _recorded(path) if old.pid != pid and _session(old)]
    leaders = [asdict(p) for p in (leader, *earlier)]
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"boot": _boot(), "note": note, "leaders": leaders}))
    fresh.replace(path)


def adopt(path: Path, old: Path, **note: str) -> None:
    """Take over the record of a cell that was started when it stood at ``old``."""
    data = _json(old)
    if not path.exists() and note.items() <= data.get("note", {}).items() and data:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data), encoding="utf-8")


def note(path: Path) -> dict[str, str]:
    """What was noted with the record at ``path``."""
    return dict(_json(path).get("note", {}))


def leader(path: Path) -> Process | None:
    """The living leader of the last session recorded at ``path``: supervisord."""
    recorded = _recorded(path)
    return recorded[0] if recorded and recorded[0].alive else None


def members(path: Path) -> list[Process]:
    """Every living process of the sessions recorded at ``path``, their leaders included."""
    return [process for recorded in _recorded(path) for process in _session(recorded)]


def leaders(*words: str) -> list[Process]:
    """Leaders of sessions in the checkout that have all ``words`` in their command line."""
    found = [p for p in _all() if p.pid == p.session and not p.zombie]
    return [p for p in found if all(word in p.command for word in words) and _is_ours(p)]


def _session(recorded: Process) -> list[Process]:
    now = read(recorded.pid)
    if now is not None and now.started != recorded.started:
        return []  # the number belongs to somebody else by now
    found = [p for p in _all() if p.session == recorded.pid and not p.zombie]
    return [p for p in found if p.pid == recorded.pid or _is_ours(p)]


def wait_gone(processes: Iterable[Process], timeout_s: float) -> list[Process]:
    """Wait until they have ended; those that have not after ``timeout_s``."""
    left = list(processes)
    wait_for(lambda: not any(p.alive for p in left), timeout_s)
    return [p for p in left if p.alive]


def bound(signum: signal.Signals) -> Callable[[], None]:
    """For ``preexec_fn``: the child gets ``signum`` when this process is gone, however it ended."""
    parent = os.getpid()

    def bind() -> None:
        if not end_with(parent, signum):
            os._exit(1)

    return bind


def wait_for(condition: Callable[[], bool], timeout_s: float, every_s: float = 0.05) -> bool:
    """Whether ``condition`` came true within ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(every_s)
    return True


def end(processes: Iterable[Process], timeout_s: float, signum: signal.Signals) -> list[Process]:
    """Ask with ``signum``, kill after ``timeout_s``; those that even that did not end."""
    asked = list(processes)
    for process in asked:
        process.send(signum)
    stubborn = wait_gone(asked, timeout_s)
    for process in stubborn:
        process.send(signal.SIGKILL, group=process.pid == process.group)
    return wait_gone(stubborn, 5.0)


def _recorded(path: Path) -> list[Process]:
    """Leaders of this boot, the latest first."""
    data = _json(path)
    return [Process(**p) for p in data["leaders"]] if data.get("boot") == _boot() else []


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _is_ours(process: Process) -> bool:
    # supervisord starts everything there, of all versions. One more proof before signals.
    try:
        return Path(f"/proc/{process.pid}/cwd").readlink() == BASE
    except OSError:
        return False


def _all() -> Iterable[Process]:
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [p for p in map(read, pids) if p is not None]


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
