"""Machines of a proof: each a namespace with a folder, where ``zimage`` runs as by a person."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deploy.config import ROOT, load
from deploy.layout import Layout
from loadtest import waiting
from loadtest.cluster import wrong_clock
from loadtest.cluster.network import Namespace

UP_S = 240.0
PORT, OPS_PORT = 7860, 7861


class Failed(Exception):
    """A command did not do what it was asked; with what it said."""


class Machine:
    """``config`` is the text of its cluster.toml, or of the part that joining does not write."""

    def __init__(self, name: str, namespace: Namespace, folder: Path, config: str) -> None:
        self.name = name
        self.environment: dict[str, str] = {}
        """Of every command there, beside that of the proof."""
        self.clock_is_right = True
        self.namespace = namespace
        self.folder = folder
        self.config_path = folder / "cluster.toml"
        folder.mkdir(parents=True, exist_ok=True)
        self.config_path.write_text(config, encoding="utf-8")

    @property
    def address(self) -> str:
        return self.namespace.address

    @property
    def command(self) -> list[str]:
        """``zimage`` there: of the release that is installed in its folder, else of the checkout
        that plays."""
        installed = self.folder / "current" / "bin" / "python"
        python = str(installed) if installed.exists() else sys.executable
        module = "deploy.cli.app" if self.clock_is_right else "loadtest.cluster.wrong_clock"
        return [*self.namespace.prefix, python, "-P", "-m", module]

    def zimage(self, *arguments: str, told: str = "", timeout_s: float = UP_S) -> str:
        """Run it there, ``told`` on its standard input; what it said, or ``Failed``."""
        done = subprocess.run(
            [*self.command, *arguments],
            input=told,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=ROOT,
            env=self._env(),
            check=False,
        )
        if done.returncode:
            raise Failed(f"{self.name}: zimage {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def refused(self, *arguments: str, timeout_s: float = UP_S) -> str:
        """What it said of why it was not done; ``Failed`` where it was."""
        try:
            self.zimage(*arguments, timeout_s=timeout_s)
        except Failed as refusal:
            return str(refusal)
        raise Failed(f"{self.name}: zimage {' '.join(arguments)} was done, and ought not")

    def _env(self) -> dict[str, str]:
        return {**os.environ, **self.environment, "ZIMAGE_CONFIG": str(self.config_path)}

    @contextlib.contextmanager
    def inviting(self, name: str, role: str) -> Iterator[str]:
        """An open invitation of ``name``: its token."""
        arguments = ["hosts", "invite", name, "--role", role, "--door", f"{self.address}:7863"]
        with subprocess.Popen(
            [*self.command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=self._env(),
        ) as invitation:
            assert invitation.stdout is not None
            try:
                token = invitation.stdout.readline().strip()
                if not token:
                    raise Failed(f"{self.name}: no invitation: {invitation.communicate()[1]}")
                yield token
            finally:
                invitation.terminate()

    def up(self, *arguments: str, told: str = "") -> None:
        self.zimage("up", *arguments, told=told)

    def cell(self) -> dict[str, Any]:
        """What its guard wrote last."""
        path = self.folder / "var" / "state" / "cell.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def hosts(self) -> dict[str, dict[str, Any]]:
        """The hosts as this front's guard sees them, by name."""
        return {host["name"]: host for host in self.cell().get("hosts", ())}

    def in_pool(self) -> set[str]:
        """The hosts to which this front's nginx would hand a request now, by the gates."""
        pool = self.folder / "var" / "pool"
        closed = {link for link in pool.glob("h*.sock") if link.readlink().name == "closed.sock"}
        return {
            name
            for name, host in self.hosts().items()
            if host.get("link") and pool / f"{host['link']}.sock" not in closed
        }

    def set_clock(self, ahead_s: int) -> None:
        """Have every process that starts there from now on read a clock that is wrong by that."""
        self.clock_is_right = not ahead_s
        for name, value in wrong_clock.variables(self.folder, ahead_s).items():
            if ahead_s:
                self.environment[name] = value
            else:
                self.environment.pop(name, None)

    @property
    def layout(self) -> Layout:
        return Layout.of(load(self.config_path))

    def lose_power(self) -> int:
        """Gone from the network at once, and then all its processes; how many there were."""
        self.namespace.unplug()
        return self.namespace.kill_all()

    def boot(self) -> None:
        """As a service does when the machine is back."""
        self.namespace.plug()
        self.up()


def until(true: Callable[[], Any], timeout_s: float, what: str) -> float:
    """Wait until ``true`` holds; the seconds it took. ``TimeoutError`` names ``what``."""

    def holds() -> object:
        with contextlib.suppress(OSError, ValueError, LookupError):  # not there, or half written
            return true()
        return False

    return waiting.until(holds, timeout_s, what)
