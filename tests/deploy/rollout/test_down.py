"""The end of a cell, with a real supervisord over programs that stand for nginx and workers."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.cell import Cell
from deploy.config import ROOT, parse
from deploy.host import processes
from deploy.rollout.down import down, end_timeout_s
from deploy.supervision import supervise
from tests.deploy.processes import wait_until

# Ends only once its sister was told to end, too; says so in its own folder.
SISTER = """
import pathlib, signal, sys, time
me, sister = map(pathlib.Path, sys.argv[1:])
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(me.write_text("asked")))
me.with_suffix(".up").touch()
while not (asked and sister.exists()):
    time.sleep(0.01)
me.write_text("ended in order")
"""


@pytest.fixture
def cell(tmp_path: Path) -> Iterator[Cell]:
    config = {"cell": {"var_dir": str(tmp_path / "var")}, "timeouts": {"drain_timeout_s": 20}}
    cell = Cell(parse(config), tmp_path / "cluster.toml")
    layout = cell.layout
    layout.create()
    script = tmp_path / "sister.py"
    script.write_text(SISTER)
    sleep = f'{sys.executable} -c "import time; time.sleep(600)"'
    commands = {"guard": sleep, "nginx": sleep} | {
        name: f"{sys.executable} {script} {tmp_path / name} {tmp_path / other}"
        for name, other in (("w1", "w2"), ("w2", "w1"))
    }
    programs = "".join(
        f"[program:{name}]\ncommand={command}\ndirectory={ROOT}\nautostart=false\nstopwaitsecs=8\n"
        for name, command in commands.items()
    )
    layout.supervisord_conf.write_text(
        f"[unix_http_server]\nfile={layout.supervisor_socket}\n"
        "[rpcinterface:supervisor]\n"
        "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n"
        f"[supervisord]\npidfile={layout.supervisor_pid}\nlogfile={layout.log('supervisord')}\n"
        f"directory={ROOT}\nchildlogdir={layout.logs_dir}\n{programs}"
    )
    supervise.start_daemon(layout, "test", str(tmp_path))
    try:
        for name in commands:
            cell.supervisor.start(name)
        wait_until(lambda: all((tmp_path / f"{w}.up").exists() for w in ("w1", "w2")), "up")
        yield cell
    finally:
        down(cell, now=True)


def test_workers_are_told_to_end_together(cell: Cell, tmp_path: Path) -> None:
    down(cell, now=False)
    ends = [(tmp_path / name).read_text() for name in ("w1", "w2")]
    assert ends == ["ended in order"] * 2
    assert processes.members(cell.layout.processes) == []


def test_time_to_end_does_not_grow_with_workers(cell: Cell) -> None:
    more = Cell(parse({"workers": [{"device": "cpu", "count": 8}]}), cell.config_path)
    drain_s = more.config.timeouts.drain_timeout_s
    assert 2 * drain_s < end_timeout_s(more) < 2 * drain_s + 120
