"""One cell as the commands see it: its configuration, paths, plan, supervisord and state file."""

import json
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from deploy import links
from deploy.config import ClusterConfig
from deploy.errors import CellError as CellError
from deploy.host import machine
from deploy.host.machine import Machine
from deploy.layout import Layout
from deploy.rendering import certificate
from deploy.rendering.certificate import Certificate
from deploy.rendering.plan import Plan, plan
from deploy.rendering.render import Host, render
from deploy.supervision.supervise import ProgramState, Supervisor, SupervisorError

STALE_S = 5.0
"""The guard writes every second; a file older than this comes from a dead guard."""


@dataclass(frozen=True)
class Cell:
    config: ClusterConfig
    config_path: Path
    certificate_source: certificate.Source | None = None

    @cached_property
    def layout(self) -> Layout:
        return Layout.of(self.config)

    @cached_property
    def supervisor(self) -> Supervisor:
        return Supervisor(self.layout)

    @cached_property
    def machine(self) -> Machine:
        return machine.read()

    @cached_property
    def plan(self) -> Plan:
        if not self.config.cluster.fronts:
            return plan(self.config, self.machine)
        used, waiting = links.in_use(self.layout), links.waiting(self.layout)
        out = links.read(self.layout).keys() - used.keys()
        return plan(self.config, self.machine, used, waiting, out, links.serves(self.layout, used))

    @property
    def has(self) -> str:
        """Which workers, for whoever named another one."""
        if not self.plan.names:
            return "this is a front, which has none: it hands requests to hosts (zimage hosts)"
        return f"this cell has {', '.join(self.plan.names)}"

    @cached_property
    def host(self) -> Host:
        nginx = machine.find_nginx(self.config.nginx.binary)
        if nginx is None:
            raise CellError(
                f'nginx.binary: no "{self.config.nginx.binary}" here; apt-get install nginx'
            )
        found = Host.current(nginx.path, nginx.version, self.machine.cores)
        return replace(found, config_path=str(self.config_path))

    @cached_property
    def certificate(self) -> Certificate | None:
        """What nginx is to show, None without HTTPS; ``CertificateError`` where it is unusable."""
        if self.config.tls.self_signed:
            return certificate.self_signed(self.config, self.layout)
        if not self.config.tls.on:
            return None
        return certificate.check(self.certificate_source or certificate.read(self.config.tls))

    def render(self) -> dict[str, str]:
        return render(self.config, self.plan, self.layout, self.host)

    @property
    def url(self) -> str:
        scheme = "https" if self.config.tls.on else "http"
        return f"{scheme}://{_reachable(self.config.listen.address)}:{self.config.listen.port}/"

    @property
    def ops_url(self) -> str:
        return f"http://{_reachable(self.config.ops.address)}:{self.config.ops.port}/"

    def programs(self) -> dict[str, ProgramState]:
        """supervisord's view; empty where it does not answer."""
        try:
            return self.supervisor.states()
        except SupervisorError:
            return {}

    def state(self) -> dict[str, Any] | None:
        """What the guard wrote last, or None. ``age_s`` and ``stale`` are added."""
        try:
            state: dict[str, Any] = json.loads(self.layout.cell_json.read_text())
            age_s = max(0.0, time.time() - state["at"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return {**state, "age_s": round(age_s, 1), "stale": age_s > STALE_S}

    def workers(self) -> dict[str, dict[str, Any]]:
        """The guard's view of each worker; empty where it is stale."""
        state = self.state()
        if state is None or state["stale"]:
            return {}
        return {worker["name"]: worker for worker in state.get("workers", ())}

    def log_tail(self, program: str, lines: int = 12) -> str:
        try:
            with self.layout.log(program).open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - 16_384))
                text = file.read().decode(errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(map(_readable, text.splitlines()[-lines:])) or "(empty log)"


def _readable(line: str) -> str:
    """A line of a JSON log as a person reads it: of a traceback, the end."""
    try:
        entry = json.loads(line)
        at = str(entry.pop("at"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return line
    told = {k: v for k, v in entry.items() if k not in {"level", "worker", "event", "what"}}
    what = entry.get("event") or entry.get("what") or ""
    details = [f"{key}={str(value).rsplit(chr(10), 1)[-1]}" for key, value in told.items()]
    return " ".join([at, what, *details])


def _reachable(address: str) -> str:
    """What a client on this machine connects to for ``address``."""
    anywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "[::]": "[::1]"}
    plain = anywhere.get(address, address)
    return f"[{plain}]" if ":" in plain and not plain.startswith("[") else plain
