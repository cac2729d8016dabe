import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.config import ROOT
from deploy.layout import Layout
from tests.deploy.processes import (
    FAKE_WORKER,
    ask,
    cell_state,
    running,
    wait_until,
    worker_environment,
)

WORKERS = ("w1", "w2", "w3")


@dataclass
class Cell:
    """A real supervisord with a real guard over fake workers."""

    layout: Layout

    def worker(self, name: str) -> dict[str, Any]:
        return next((w for w in cell_state(self.layout)["workers"] if w["name"] == name), {})

    def is_open(self, name: str) -> bool:
        link = self.layout.gate(name)
        return link.is_symlink() and link.readlink() == self.layout.socket(name)

    def pid(self, name: str) -> int:
        return int(self.worker(name).get("pid", 0))

    def wait_open(self, *names: str) -> None:
        wait_until(lambda: all(self.is_open(name) for name in names), "open")

    def wait_replaced(self, name: str, pid: int) -> None:
        """Until another process than ``pid`` serves in the pool."""
        wait_until(lambda: self.pid(name) not in (0, pid) and self.is_open(name), "replaced")

    def events(self, worker: str | None) -> list[str]:
        return [e["what"] for e in cell_state(self.layout)["events"] if e["worker"] == worker]

    def history(self) -> dict[str, Any]:
        return dict(json.loads(self.layout.history_json.read_text()))

    def alarms(self) -> set[str]:
        return {alarm["name"] for alarm in cell_state(self.layout)["alarms"]}

    def ask(self, name: str, method: str, path: str) -> int:
        return ask(self.layout, name, method, path).status_code


def guard_json(layout: Layout, **rules: float) -> dict[str, Any]:
    return {
        "var_dir": str(layout.var_dir),
        "run_dir": str(layout.run_dir),
        "workers": [{"name": name} for name in WORKERS],
        "guard": {
            "idle_allowance_s": 1.5,
            "max_kills_per_minute": 60,
            "chores_interval_s": 0.5,
            "history_interval_s": 0.5,
            **rules,
        },
    }


def supervisord_conf(layout: Layout) -> str:
    programs = "\n".join(_worker_program(layout, name) for name in WORKERS)
    return f"""
[unix_http_server]
file = {layout.supervisor_socket}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisord]
logfile = {layout.log("supervisord")}
pidfile = {layout.supervisor_pid}
[program:guard]
command = {sys.executable} -m deploy.guard {layout.guard_json}
directory = {ROOT}
startsecs = 1
redirect_stderr = true
stdout_logfile = {layout.log("guard")}
{programs}
"""


def _worker_program(layout: Layout, name: str) -> str:
    environment = worker_environment(layout, name)
    pairs = ",".join(f'{key}="{value}"' for key, value in environment.items())
    return f"""
[program:{name}]
command = {sys.executable} {FAKE_WORKER}
environment = {pairs}
autorestart = true
startsecs = 2
startretries = 3
redirect_stderr = true
stdout_logfile = {layout.log(name)}
"""


@contextlib.contextmanager
def started(layout: Layout, **rules: float) -> Iterator[Cell]:
    layout.create()
    layout.guard_json.write_text(json.dumps(guard_json(layout, **rules)))
    layout.supervisord_conf.write_text(supervisord_conf(layout))
    command = [sys.executable, "-W", "ignore", "-m", "supervisor.supervisord", "-n"]
    command += ["-c", str(layout.supervisord_conf)]
    with running(command, layout.log("supervisord.out")):
        cell = Cell(layout)
        cell.wait_open(*WORKERS)
        wait_until(lambda: all(cell.pid(name) for name in WORKERS), "reported")
        yield cell


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    """All tests of a module share it; each leaves all workers in the pool."""
    var_dir = tmp_path_factory.mktemp("cell")
    with started(Layout(var_dir, var_dir / "run")) as cell:
        yield cell


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path, tmp_path / "run")
    layout.create()
    return layout
