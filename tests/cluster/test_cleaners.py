"""A cell that serves is found and managed whatever a cleaner of old files took from under it."""

import contextlib
import signal
import subprocess
from collections.abc import Callable

import httpx
import pytest

from deploy.host import processes
from deploy.rollout.picture import PROMPT
from tests.cluster.conftest import RunningCell, started
from tests.deploy.processes import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def take_the_short_name(cell: RunningCell) -> None:
    assert cell.layout.short_link is not None
    cell.layout.short_link.unlink()


def take_the_files(cell: RunningCell) -> None:
    """All that may be old: heartbeats are written to and locks are held."""
    for path in cell.layout.run_dir.rglob("*"):
        if path.is_file() and path.suffix not in {".beat", ".steps", ".lock"}:
            path.unlink()


def draws(cell: RunningCell) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        body = {"prompt": PROMPT, "size": "64x64"}
        answer = httpx.post(f"{cell.url}/v1/images/generations", json=body, timeout=60)
        return answer.status_code == 200
    return False


@pytest.mark.parametrize(
    ("take", "values"),
    [
        (take_the_short_name, {"beneath": "x" * 80}),
        (take_the_files, {"cell": 'run_dir = "{folder}/r"'}),
    ],
    ids=["short name", "run directory"],
)
def test_cell_is_managed_after_a_cleaner_came_by(
    take: Callable[[RunningCell], None], values: dict[str, str]
) -> None:
    with started(workers=1, **values) as cell:
        before = {p.pid for p in processes.members(cell.layout.processes)}
        take(cell)
        wait_until(lambda: draws(cell), "drawing again")
        wait_until(lambda: said(cell.zimage("status")) == 0, "the guard saw that, too")
        up = cell.zimage("up", "--no-draw")
        assert (said(up), "nothing to change" in up.stdout) == (0, True), up.stdout
        assert said(cell.zimage("restart", "w1")) == 0
        assert before & {p.pid for p in processes.members(cell.layout.processes)}
        down = cell.zimage("down")
        assert "none is left" in down.stdout


def test_cell_is_ended_though_its_guard_cannot_mend_the_short_name() -> None:
    with started(workers=1, beneath="y" * 80) as cell:
        living = processes.members(cell.layout.processes)
        for guard in (p for p in living if "deploy.guard" in p.command):
            guard.send(signal.SIGSTOP)
        take_the_short_name(cell)
        down = cell.zimage("down", "--now")
        assert "none is left" in down.stdout
        assert [p for p in living if p.alive] == []


def said(done: "subprocess.CompletedProcess[str]") -> int:
    if done.returncode:
        print(done.stdout, done.stderr)
    return done.returncode
