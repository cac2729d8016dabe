"""The cell's supervisord: start it, ask it, tell it. XML-RPC over its unix socket."""

import os
import subprocess
import time
import xmlrpc.client
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.host import processes
from deploy.installation import PYTHON
from deploy.layout import Layout
from deploy.supervision import rpc

STOPPED = frozenset({"STOPPED", "EXITED", "FATAL"})
KEPT_VARIABLES = ["PATH", "TZ", "LD_LIBRARY_PATH", "NVIDIA_VISIBLE_DEVICES", "SSL_CERT_FILE"]


class SupervisorError(Exception):
    """supervisord does not answer, or answered with a fault."""


@dataclass(frozen=True)
class ProgramState:
    """One program. ``state`` is supervisor's word: RUNNING, STARTING, BACKOFF, STOPPED, …"""

    name: str
    state: str
    pid: int
    since: float
    exit_status: int
    description: str


@dataclass(frozen=True)
class Changes:
    """How the file on disk differs from what supervisord runs, by program name."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]


class Supervisor:
    """Every call has a deadline: a stopped supervisord answers nothing."""

    def __init__(self, layout: Layout, timeout_s: float = 10.0) -> None:
        self._socket, self._timeout_s = layout.supervisor_socket, timeout_s

    def answers(self) -> bool:
        try:
            return bool(self._call("getState")["statename"] == "RUNNING")
        except SupervisorError:
            return False

    def states(self) -> dict[str, ProgramState]:
        infos = self._call("getAllProcessInfo")
        return {info["name"]: _state(info) for info in infos}

    def reread(self) -> Changes:
        """Compare the file with what runs; nothing is stopped or started."""
        [[added, changed, removed]] = self._call("reloadConfig")
        return Changes(tuple(added), tuple(changed), tuple(removed))

    def start(self, name: str) -> None:
        """Begin to start ``name``; harmless when it already runs."""
        self._call("startProcess", name, False, harmless=("ALREADY_STARTED",))

    def stop(self, name: str, timeout_s: float) -> None:
        """Stop ``name`` and wait; supervisord kills its group after its own ``stopwaitsecs``."""
        if self.stop_all([name], timeout_s):
            raise SupervisorError(f"{name} did not stop within {timeout_s:g} s")

    def stop_all(self, names: Collection[str], timeout_s: float) -> list[str]:
        """Stop ``names`` at the same time and wait; those that have not after ``timeout_s``."""
        for name in names:
            self._call("stopProcess", name, False, harmless=("NOT_RUNNING",))
        processes.wait_for(lambda: not self._running(names), timeout_s)
        return self._running(names)

    def _running(self, names: Collection[str]) -> list[str]:
        states = self.states()
        return [name for name in names if name in states and states[name].state not in STOPPED]

    def add(self, name: str) -> None:
        self._call("addProcessGroup", name, harmless=("ALREADY_ADDED",))

    def remove(self, name: str) -> None:
        """Forget a stopped program."""
        self._call("removeProcessGroup", name, harmless=("BAD_NAME",))

    def renew(self, name: str) -> None:
        """Start a stopped program as the file that was read again now has it, in one request: a
        command that is killed meanwhile leaves none that supervisord has forgotten."""
        calls = [
            {"methodName": "supervisor.removeProcessGroup", "params": [name]},
            {"methodName": "supervisor.addProcessGroup", "params": [name]},
            {"methodName": "supervisor.startProcess", "params": [name, False]},
        ]
        _, *answers = self._request("system.multicall", calls)  # an unknown one need not go
        for answer in answers:
            if isinstance(answer, dict) and "faultString" in answer:
                raise SupervisorError(f"supervisord: {name}: {answer['faultString']}")

    def signal(self, name: str, signum: str) -> None:
        """Harmless where it does not run."""
        self._call("signalProcess", name, signum, harmless=("NOT_RUNNING",))

    def shutdown(self) -> None:
        self._call("shutdown")

    def _call(self, method: str, *arguments: object, harmless: tuple[str, ...] = ()) -> Any:
        return self._request(f"supervisor.{method}", *arguments, harmless=harmless)

    def _request(self, method: str, *arguments: object, harmless: tuple[str, ...] = ()) -> Any:
        try:
            return rpc.call(self._socket, self._timeout_s, method, *arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultString.split(":")[0] in harmless:
                return None
            raise SupervisorError(f"supervisord: {fault.faultString}") from None
        except rpc.NoAnswer as error:
            raise SupervisorError(
                f"supervisord does not answer at {self._socket} ({error}); what it has started "
                "goes on, and is taken over by: zimage up"
            ) from None


def command(layout: Layout, *options: str) -> list[str]:
    return [
        PYTHON,
        "-m",
        "supervisor.supervisord",
        "-c",
        str(layout.supervisord_conf),
        *options,
    ]


def environment(home: str, tmp_dir: Path | None = None) -> dict[str, str]:
    """What the cell inherits: little, so that it does not depend on who typed `up`, and where.

    ``tmp_dir`` is where temporary files go, such as SQLite's, in a container where /tmp is as
    read-only as all of its file system.
    """
    kept = {k: os.environ[k] for k in KEPT_VARIABLES if k in os.environ}
    if tmp_dir is not None and not os.access("/tmp", os.W_OK):
        kept["TMPDIR"] = str(tmp_dir)
    # No bytecode: the cell's umask would make caches in the checkout that nobody else can read.
    own = {"HOME": home, "LANG": "C.UTF-8", "PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**kept, **own, "PYTHONWARNINGS": "ignore::UserWarning"}


def start_daemon(layout: Layout, cell: str, home: str, timeout_s: float = 20.0) -> None:
    """Start supervisord in the background, in a session of its own; it starts no program yet."""
    started = subprocess.run(
        command(layout),
        env=environment(home, layout.tmp_dir),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if started.returncode != 0:
        raise SupervisorError(f"supervisord does not start: {started.stderr.strip()}")
    wait_started(layout, cell, timeout_s)


def start_child(
    layout: Layout, cell: str, home: str, timeout_s: float = 20.0
) -> subprocess.Popen[bytes]:
    """Start supervisord as a child of this process, in a session of its own all the same."""
    # A handle to it is kept by whoever waits for it: `up --foreground`.
    child = subprocess.Popen(
        command(layout, "--nodaemon", "--silent"),
        env=environment(home, layout.tmp_dir),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_started(layout, cell, timeout_s)
    return child


def wait_started(layout: Layout, cell: str, timeout_s: float) -> None:
    """Wait until it answers and write down its session."""
    supervisor = Supervisor(layout)
    if not processes.wait_for(supervisor.answers, timeout_s):
        raise SupervisorError(
            f"supervisord does not answer after {timeout_s:g} s; see {layout.log('supervisord')}"
        )
    _record(layout, cell, int(layout.supervisor_pid.read_text()))


def unrecorded(layout: Layout) -> processes.Process | None:
    """A supervisord of this cell that nobody has written down: who started it was killed."""
    if processes.leader(layout.processes) is not None:
        return None
    found = processes.leaders("supervisor.supervisord", str(layout.supervisord_conf))
    return found[0] if found else None


def find_again(layout: Layout, cell: str) -> None:
    """Write such a one down. One process at a time may do this."""
    if (found := unrecorded(layout)) is not None:
        _record(layout, cell, found.pid)


def _record(layout: Layout, cell: str, pid: int) -> None:
    for path in (layout.processes, layout.run_record):
        processes.record(path, pid, cell=cell, var_dir=str(layout.var_dir))


def _state(info: dict[str, Any]) -> ProgramState:
    return ProgramState(
        info["name"],
        info["statename"],
        info["pid"],
        info["start"] or time.time(),
        info["exitstatus"],
        info["description"],
    )
