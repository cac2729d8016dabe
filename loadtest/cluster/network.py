"""Machines that exist in this kernel only: network namespaces on one bridge, to be cut off at will.

Only what a ``Network`` made is ever touched, and all of it is gone with it. Needs root.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from worker.file_lock import try_lock

_BRIDGE = "zi-bridge"
_ROOT_LINK = "zi-root"
_SUBNET = "10.77.0"
OWN_ADDRESS = f"{_SUBNET}.1"
"""Of whoever runs the proof, on the same network."""

_LOCK = Path(tempfile.gettempdir(), "zimage-network.lock")
_COMMAND_S = 20.0
_END_S = 10.0

Direction = Literal["both", "in", "out"]


class NoNetwork(Exception):
    """Namespaces cannot be made here; says why."""


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


@dataclass(frozen=True)
class Namespace:
    """One machine's network: ``lo``, and ``eth0`` with ``address``."""

    name: str
    address: str

    @property
    def prefix(self) -> list[str]:
        """What a command begins with that shall run there."""
        return ["ip", "netns", "exec", self.name]

    def run(self, *command: str) -> str:
        return _run(*self.prefix, *command)

    def pids(self) -> list[int]:
        return [int(pid) for pid in _run("ip", "netns", "pids", self.name).split()]

    def drop(self, direction: Direction = "both", port: int | None = None) -> None:
        """Silently lose packets, as a dead switch does; ``in``: what comes to it alone. ``port``:
        only what is meant for that port of another machine, or comes from there."""
        for chain, way, match in (("INPUT", "-i", "--sport"), ("OUTPUT", "-o", "--dport")):
            if direction in ("both", "in" if chain == "INPUT" else "out"):
                of_port = ["-p", "tcp", match, str(port)] if port else []
                self.run("iptables", "-A", chain, way, "eth0", *of_port, "-j", "DROP")

    def heal(self) -> None:
        """Lose no more packets."""
        self.run("iptables", "-F")

    def unplug(self) -> None:
        self.run("ip", "link", "set", "eth0", "down")

    def plug(self) -> None:
        self.run("ip", "link", "set", "eth0", "up")

    def kill_all(self) -> int:
        """SIGKILL to every process there, until none is left; how many there were at first."""
        end, before = time.monotonic() + _END_S, len(self.pids())
        while left := self.pids():
            if time.monotonic() > end:
                raise RuntimeError(f"{len(left)} processes of {self.name} do not end")
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        return before


class Network:
    """A bridge, and a namespace for each of ``names``, by name."""

    def __init__(self, names: Sequence[str]) -> None:
        self.machines = {
            name: Namespace(f"zi-{name}", f"{_SUBNET}.{number}")
            for number, name in enumerate(names, start=11)
        }

    def __getitem__(self, name: str) -> Namespace:
        return self.machines[name]

    def make(self) -> None:
        _run("ip", "netns", "add", _BRIDGE)
        _in_bridge("ip", "link", "add", "br0", "type", "bridge")
        _in_bridge("ip", "link", "set", "br0", "up")
        _run("ip", "link", "add", _ROOT_LINK, "type", "veth", "peer", "root", "netns", _BRIDGE)
        _in_bridge("ip", "link", "set", "root", "master", "br0", "up")
        _run("ip", "address", "add", f"{OWN_ADDRESS}/24", "dev", _ROOT_LINK)
        _run("ip", "link", "set", _ROOT_LINK, "up")
        for name, machine in self.machines.items():
            _plug_in(name, machine)

    def end(self) -> None:
        """Kill what runs in the namespaces, and take them away."""
        for machine in self.machines.values():
            with contextlib.suppress(RuntimeError):
                machine.kill_all()
                _run("ip", "netns", "delete", machine.name)
        with contextlib.suppress(RuntimeError):
            _run("ip", "link", "delete", _ROOT_LINK)
        with contextlib.suppress(RuntimeError):
            _run("ip", "netns", "delete", _BRIDGE)


def _in_bridge(*command: str) -> None:
    _run("ip", "netns", "exec", _BRIDGE, *command)


def _plug_in(name: str, machine: Namespace) -> None:
    _run("ip", "netns", "add", machine.name)
    peer = ("type", "veth", "peer", "eth0", "netns", machine.name)
    _in_bridge("ip", "link", "add", "name", f"to-{name}", *peer)
    _in_bridge("ip", "link", "set", f"to-{name}", "master", "br0", "up")
    machine.run("ip", "link", "set", "lo", "up")
    machine.run("ip", "address", "add", f"{machine.address}/24", "dev", "eth0")
    machine.run("ip", "link", "set", "eth0", "up")


def _check() -> None:
    if os.geteuid() != 0:
        raise NoNetwork("namespaces take root: run it as root, in a container of your own")
    for program, package in (("ip", "iproute2"), ("iptables", "iptables")):
        if shutil.which(program) is None:
            raise NoNetwork(f"no {program} here; apt-get install {package}")
    try:
        _run("unshare", "--net", "true")
    except RuntimeError as problem:
        raise NoNetwork(f"this machine makes no namespaces: {problem}") from None


@contextlib.contextmanager
def network(*names: str) -> Iterator[Network]:
    """A network of machines called ``names``; one at a time on this machine. ``NoNetwork`` where
    there can be none."""
    _check()
    with _LOCK.open("w", encoding="utf-8") as lock:
        if not try_lock(lock):
            raise NoNetwork("another proof has its network here; wait for its end")
        made = Network(names)
        made.end()  # what a killed one has left
        try:
            made.make()
            yield made
        finally:
            made.end()
