"""Real cells: supervisord, guard, nginx and workers on the synthetic pipeline, in a short folder.

The synthetic pipeline stands where a GPU would: its steps take a known time, its pictures spell
the prompt and seed that made them, and prompts that begin with ``fault:`` misbehave.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from deploy.config import load
from loadtest.faults import Cell, process_ids
from loadtest.traffic import Traffic
from loadtest.waiting import until_async as until
from tests import command_line
from tests.ports import free_ports
from worker.coordination.heartbeat import read_heartbeat
from worker.coordination.processes import is_alive

CONFIG = """
[cell]
name = "{name}"
var_dir = "{folder}/var"
{cell}
[listen]
port = {port}
auth = "{auth}"
[ops]
port = {ops_port}
[model]
source = "{model}"
[limits.request]
{limits}
[limits.worker]
max_batch = {max_batch}
max_queued_requests = {max_queued_requests}
[timeouts]
step_allowance_s = {step_allowance_s}
[guard]
max_kills_per_minute = 60
[nginx]
max_connections_per_address = 0
max_requests_per_s_per_address = 0
[[workers]]
device = "cpu"
count = {workers}
threads = 1
{more}
"""


STEPS = "synthetic:step_ms=80"
"""Slow enough that clients who draw all the time keep workers busy, and not this machine."""


class RunningCell(Cell):
    """A cell that this test started, with its command line."""

    def __init__(self, folder: Path, **values: object) -> None:
        port, self.ops_port = free_ports(2)
        self.config_path = folder / "cluster.toml"
        values = {
            "name": "test",
            "auth": "loopback",
            "model": STEPS,
            "workers": 3,
            "max_batch": 4,
            "max_queued_requests": 64,
            "step_allowance_s": 2.0,
            "more": "",
            "limits": "",
            "cell": "",
        } | values
        values["cell"] = str(values["cell"]).format(folder=folder)
        self.config_path.write_text(
            CONFIG.format(folder=folder, port=port, ops_port=self.ops_port, **values)
        )
        seen = Cell.of(load(self.config_path), self.config_path)
        super().__init__(seen.layout, seen.url)

    def zimage(
        self, *arguments: str, timeout_s: float = command_line.DEADLINE_S
    ) -> subprocess.CompletedProcess[str]:
        """Run ``zimage`` on this cell and return what it said."""
        environment = {**os.environ, "ZIMAGE_CONFIG": str(self.config_path)}
        return command_line.zimage(arguments, environment, timeout_s)

    def up(self) -> None:
        done = self.zimage("up")
        assert done.returncode == 0, done.stdout + done.stderr

    def down(self) -> None:
        done = self.zimage("down")
        assert done.returncode == 0, done.stdout + done.stderr

    async def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``zimage`` beside running traffic."""
        return await asyncio.to_thread(self.zimage, *arguments)

    async def all_open(self, timeout_s: float = 120.0) -> float:
        """Wait until every worker is in the pool; the seconds it took."""
        return await until(self.is_whole, timeout_s, "every worker in the pool")

    def is_whole(self, *, without: str = "") -> bool:
        """Every gate is open, and not because the guard has yet to notice a death; that of worker
        ``without`` is closed."""
        workers = set(self.workers()) - {without}
        beats = [read_heartbeat(self.layout.heartbeat(worker)) for worker in workers]
        alive = all(
            heartbeat is not None and is_alive(heartbeat.pid, heartbeat.since)
            for heartbeat in beats
        )
        return alive and self.open() == workers

    async def closed(self, worker: str, timeout_s: float = 10.0) -> float:
        """Wait until ``worker`` is out of the pool; the seconds it took."""
        return await until(lambda: worker not in self.open(), timeout_s, f"{worker} out")

    @contextlib.asynccontextmanager
    async def traffic(self, **options: object) -> AsyncIterator[Traffic]:
        """Twelve clients, two of whom read slowly; every picture is checked, no error allowed."""
        settings = {"clients": 12, "slow_readers": 2, "body": mixed_body} | options
        async with Traffic(self.url, **settings) as traffic:  # type: ignore[arg-type]
            await traffic.until_served(12)
            yield traffic
            await traffic.until_served(12)
        note(traffic)
        assert traffic.failures == [], self.story()

    def story(self, since: float = 0.0) -> str:
        """What the guard saw lately, for a failed test's message."""
        return "".join(
            f"\n{time.strftime('%H:%M:%S', time.localtime(event['at']))} "
            f"{event.get('worker') or 'cell'} {event['what']}"
            for event in self.state()["events"]
            if event["at"] >= since
        )


PLAYED: list[str] = []
"""What was done while clients drew, and how many answers they lost by it."""


def note(traffic: Traffic, what: str = "", since: int = 0) -> None:
    """``since``: how many answers had come when it began."""
    test = os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].removesuffix(" (call)")
    answers = traffic.outcomes[since:]
    lost = sum(bool(answer.error) for answer in answers)
    PLAYED.append(f"{lost} of {len(answers)} lost  {what or test}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("PROVE") and PLAYED:
        terminalreporter.section("what clients lost")
        for line in PLAYED:
            terminalreporter.write_line(line)


def edit(cell: RunningCell, old: str, new: str) -> Callable[[], None]:
    """Change ``cluster.toml``; what is returned changes it back."""
    text = cell.config_path.read_text()
    assert old in text
    cell.config_path.write_text(text.replace(old, new))

    def undo() -> None:
        cell.config_path.write_text(text)

    return undo


def mixed_body(client: int, turn: int) -> dict[str, object]:
    """The first two clients ask for several MB, the others for small pictures."""
    # Each prompt is new: one that workers died of before would be drawn alone.
    prompt = f"client {client} turn {turn} {os.urandom(4).hex()}"
    body: dict[str, object] = {"prompt": prompt, "size": "256x256"}
    return body | {"size": "1024x1024", "n": 2} if client < 2 else body


@contextlib.contextmanager
def started(*, beneath: str = "", **values: object) -> Iterator[RunningCell]:
    """A cell from ``up`` to ``down``; nothing of it may be left running."""
    with configured(beneath=beneath, **values) as cell:
        cell.up()
        yield cell


@contextlib.contextmanager
def configured(*, beneath: str = "", **values: object) -> Iterator[RunningCell]:
    """A cell that the test itself starts. ``beneath``: how its folder is called, in one that is
    short."""
    folder = Path(tempfile.mkdtemp(prefix="zc-", dir="/tmp"))
    (folder / beneath).mkdir(exist_ok=True)
    cell = RunningCell(folder / beneath, **values)
    with ended(cell, folder):
        yield cell


@contextlib.contextmanager
def ended(cell: RunningCell, folder: Path) -> Iterator[None]:
    """Takes ``cell`` down and ``folder`` away; nothing of it may be left running."""
    try:
        yield
    finally:
        cell.down()
        left = process_ids(folder)
        shutil.rmtree(folder, ignore_errors=True)
    assert left == set()


class SharedCell:
    """The cell that the modules of one ``xdist_group`` share."""

    def __init__(self) -> None:
        self._kind: dict[str, object] | None = None
        self._running = contextlib.ExitStack()

    def of(self, **values: object) -> RunningCell:
        """A cell of ``values`` as ``started`` takes them: the one that runs, where it is as new."""
        if values != self._kind or not self._is_as_new():
            self.end()
            self._cell = self._running.enter_context(started(beneath="", **values))
            self._kind, self._text = values, self._cell.config_path.read_text()
        return self._cell

    def end(self) -> None:
        self._kind = None
        self._running.close()

    def _is_as_new(self) -> bool:
        """What a test that failed left behind is no cell for the next module."""
        return self._text == self._cell.config_path.read_text() and self._cell.whole()


SHARED = SharedCell()
"""For fixtures of modules. Leave it as you found it."""


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or group_of(nextitem) != group_of(item):
        SHARED.end()


def group_of(item: pytest.Item) -> str:
    """By default a module."""
    mark = item.get_closest_marker("xdist_group")
    return str(mark.args[0]) if mark else item.nodeid.split("::", 1)[0]


@pytest.fixture(scope="module")
def cell() -> RunningCell:
    """Three workers."""
    return SHARED.of(model=f"{STEPS},noise=1")


@pytest.fixture(scope="module")
def keyed() -> RunningCell:
    """Three workers that ask for keys; ``up`` has drawn its first picture on them."""
    return SHARED.of(auth="keys", model="synthetic:step_ms=30")


@pytest.fixture(scope="module")
def slow_cell() -> RunningCell:
    """Two workers that take two seconds for a picture."""
    return SHARED.of(model="synthetic:step_ms=250", workers=2)
