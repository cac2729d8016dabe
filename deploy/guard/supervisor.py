"""Supervisor as the guard sees it: what runs, and starting what supervisor gave up on.

A killed program is respawned only when supervisor's loop turns, up to a second later; any call
turns it at once. Programs that keep failing are backed off ever longer and given up at last: the
guard starts those itself, with a back-off of its own that ends at ``max_start_backoff_s``.
"""

import re
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.supervision import rpc
from worker.exits import NAMES as EXIT_NAMES

_TIMEOUT_S = 5.0
_LOG_TAIL_BYTES = 8192
_EXITED = re.compile(r"^(\S+ \S+) \w+ exited: (\S+) \((.*?)(?:; (?:not )?expected)?\)$", re.M)
_STABLE_S = 60.0  # a program that ran so long gets its first, short back-off again


DOWN = frozenset({"BACKOFF", "FATAL", "EXITED"})
"""States in which a program has no process and nobody wanted it stopped."""


class SupervisorAway(Exception):
    """supervisord does not answer."""


class SupervisorEnds(Exception):
    """supervisord shuts down and takes no more calls."""


@dataclass(frozen=True)
class Program:
    name: str
    state: str
    """STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL or UNKNOWN."""
    pid: int
    uptime_s: float
    spawn_error: str


@dataclass(frozen=True)
class Exit:
    at: str
    """As supervisor writes it: with the name, it tells one end from another."""
    name: str
    how: str
    """``exit status 70`` or ``terminated by SIGKILL``."""

    @property
    def meaning(self) -> str:
        """``how``, and what our exit codes stand for."""
        code = self.how.removeprefix("exit status ")
        known = EXIT_NAMES.get(int(code)) if code.isdecimal() else None
        return f"{self.how} ({known})" if known else self.how


class Supervisor:
    """Blocking: call it in a thread. Every call ends within seconds."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def programs(self) -> dict[str, Program]:
        """All programs by name. Asking also makes supervisor respawn what has just died."""
        return {info["name"]: _program(info) for info in self._call("supervisor.getAllProcessInfo")}

    def exits(self) -> list[Exit]:
        """Recent ends of processes, oldest first, out of supervisor's own log: it tells nobody
        else how a process ended that did not live for ``startsecs``."""
        return exits_in(self._call("supervisor.readLog", -_LOG_TAIL_BYTES, 0))

    def start(self, program: Program) -> None:
        """Start it now. Supervisor refuses to start what it backs off: that is stopped first, in
        the same request, so that a guard that dies meanwhile leaves nothing stopped."""
        # Asked again at the last moment: supervisor may have started it meanwhile, and a stop that
        # reaches a child between fork and exec is lost, so that it would be "stopping" for ever.
        state = self._program(program.name).state
        if state not in DOWN and not state == program.state == "STOPPED":
            return
        parameters = [program.name, False]  # False: do not wait until it runs
        calls = [{"methodName": "supervisor.startProcess", "params": parameters}]
        if program.state == "BACKOFF":
            calls.insert(0, {"methodName": "supervisor.stopProcess", "params": parameters})
        self._call("system.multicall", calls)

    def stop(self, program: Program) -> None:
        """Begin to stop it."""
        self._call("supervisor.stopProcess", program.name, False)

    def _program(self, name: str) -> Program:
        return _program(self._call("supervisor.getProcessInfo", name))

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return rpc.call(self._path, _TIMEOUT_S, method, *arguments)
        except xmlrpc.client.Fault as fault:
            raise SupervisorEnds(fault.faultString) from fault
        except rpc.NoAnswer as error:
            raise SupervisorAway(str(error)) from error


def exits_in(log: str) -> list[Exit]:
    """The ends of processes that a piece of supervisor's log tells of."""
    return [Exit(*found) for found in _EXITED.findall(log)]


class Restarts:
    """When to start which program: 1, 2, 4 … seconds after it was seen down. Pure."""

    def __init__(self, max_backoff_s: float) -> None:
        self._max_backoff_s = max_backoff_s
        self._attempts: dict[str, int] = {}
        self._down_since: dict[str, float] = {}

    def due(self, program: Program, now: float) -> bool:
        """Whether to start ``program`` now; True counts as an attempt. What an operator stopped
        stays stopped."""
        name = program.name
        if program.state not in DOWN:
            self._down_since.pop(name, None)
            if program.state == "RUNNING" and program.uptime_s > _STABLE_S:
                self._attempts.pop(name, None)
            return False
        if now - self._down_since.setdefault(name, now) < self.delay_s(name):
            return False
        self._attempts[name] = self._attempts.get(name, 0) + 1
        self._down_since[name] = now
        return True

    def delay_s(self, name: str) -> float:
        return float(min(self._max_backoff_s, 2 ** min(self._attempts.get(name, 0), 16)))


def _program(info: dict[str, Any]) -> Program:
    return Program(
        info["name"],
        info["statename"],
        info["pid"],
        max(0.0, info["now"] - info["start"]) if info["pid"] else 0.0,
        info["spawnerr"],
    )
