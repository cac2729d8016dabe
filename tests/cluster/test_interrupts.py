"""A command that ends half-way, by a signal or a lost terminal, takes no worker away for good."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial

import httpx
import pytest

from deploy.config import ROOT
from tests import command_line
from tests.cluster.conftest import RunningCell, configured
from tests.deploy.processes import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("slow_cell"),
    pytest.mark.long,
]


@pytest.fixture
def cell(slow_cell: RunningCell) -> RunningCell:
    return slow_cell


@contextlib.contextmanager
def drawing(cell: RunningCell) -> Iterator[list[int]]:
    """Every worker draws for seconds meanwhile; the statuses of their answers."""
    statuses: list[int] = []

    def draw() -> None:
        body = {"prompt": os.urandom(4).hex(), "size": "64x64", "steps": 32}
        answer = httpx.post(f"{cell.url}/v1/images/generations", json=body, timeout=60)
        statuses.append(answer.status_code)

    clients = [threading.Thread(target=draw) for _ in cell.workers()]
    for client in clients:
        client.start()
    wait_until(lambda: all(w["running"] for w in cell.state()["workers"]), "drawing")
    yield statuses
    for client in clients:
        client.join(60)


def flags(cell: RunningCell) -> set[str]:
    return {path.name for path in cell.layout.drained_dir.iterdir()}


def environment(cell: RunningCell) -> dict[str, str]:
    return {**os.environ, "ZIMAGE_CONFIG": str(cell.config_path)}


def command(
    cell: RunningCell, *words: str
) -> contextlib.AbstractContextManager[command_line.Command]:
    return command_line.started(words, environment(cell))


def on_a_terminal(cell: RunningCell, terminal: int, *words: str) -> "subprocess.Popen[bytes]":
    """``zimage`` as the leader of the session of ``terminal``."""
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.cli.app", *words],
        cwd=ROOT,
        env=environment(cell),
        preexec_fn=partial(os.login_tty, terminal),
    )


def whole(cell: RunningCell) -> None:
    wait_until(lambda: flags(cell) == set() and cell.is_whole(), "whole again")


def test_terminal_that_dies_in_a_rolling_restart_leaves_nobody_drained(cell: RunningCell) -> None:
    master, slave = os.openpty()
    rolling = ("restart", "--rolling")
    with drawing(cell) as statuses, on_a_terminal(cell, slave, *rolling) as left:
        os.close(slave)
        wait_until(lambda: flags(cell), "drained")
        os.close(master)
        assert left.wait(60) == 128 + signal.SIGHUP
    assert statuses == [200, 200]
    whole(cell)


def test_asked_to_end_while_it_measures_calibrate_gives_the_worker_back(cell: RunningCell) -> None:
    with command(cell, "calibrate", "w1", "--sizes", "64x64", "--repeats", "100") as ended:
        wait_until(lambda: "measure on" in ended.said(), "measuring")
        ended.send_signal(signal.SIGTERM)
        code = ended.wait(60)
        assert (code, "interrupted" in ended.complained()) == (128 + signal.SIGTERM, True)
    whole(cell)


def test_up_is_not_ready_while_the_pool_is_empty(cell: RunningCell) -> None:
    for worker in ("w1", "w2"):
        assert cell.zimage("drain", worker).returncode == 0
    done = cell.zimage("up", "--no-draw")
    assert done.returncode == 1
    assert "nobody draws: all workers are drained" in done.stderr
    assert "ready:" not in done.stdout
    for worker in ("w1", "w2"):
        assert cell.zimage("undrain", worker).returncode == 0
    whole(cell)


def test_drain_and_restart_know_of_each_other(cell: RunningCell) -> None:
    with drawing(cell), command(cell, "restart", "--rolling") as restart:
        wait_until(lambda: flags(cell), "drained")
        refused = cell.zimage("drain", "w2")
        assert refused.returncode == 1
        assert "`zimage restart --rolling w1 w2` by " in refused.stderr
        assert f"(process {restart.pid}, since" in refused.stderr
        aborted = cell.zimage("up", "--abort")
        assert aborted.returncode == 0, aborted.stderr
        assert restart.wait(60) == 128 + signal.SIGTERM
    whole(cell)


def test_foreground_obeys_while_workers_load() -> None:
    with configured(workers=1) as cell, command(cell, "up", "--foreground") as up:
        wait_until(lambda: "waiting for" in up.said(), "loading")
        up.send_signal(signal.SIGTERM)
        code = up.wait(60)
        assert (code, up.said().splitlines()[-1]) == (0, "✓ the cell has ended")
