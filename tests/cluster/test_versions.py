"""From one version to another under load: good, broken and migrating ones, and back."""

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy import rollout_record
from deploy.host import processes
from deploy.rollout.releases import Releases
from deploy.rollout_record import Record, Step
from deploy.supervision.supervise import Supervisor
from loadtest.cluster.wheels import MIGRATES, SHARED, Wheels, copy_of_the_code, install
from tests.cluster.conftest import RunningCell, ended, note

prove = pytest.mark.skipif("PROVE" not in os.environ, reason="long: scripts/prove versions")
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.long]


class Installed(RunningCell):
    """A cell of an installation of its own: releases in a folder, no checkout."""

    def __init__(self, folder: Path, **values: object) -> None:
        super().__init__(folder, **values)
        self.folder = folder
        self.releases = Releases(folder)

    @property
    def program(self) -> list[str | Path]:
        return [self.releases.current / "bin" / "zimage"]

    def zimage(self, *arguments: str, timeout_s: float = 90.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.program, *arguments],
            cwd="/",
            env={**os.environ, "ZIMAGE_CONFIG": str(self.config_path)},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def versions(self) -> dict[str, str]:
        """Which version each worker and the guard run."""
        running = {n: processes.read(pid) for n, pid in self.pids().items() if n != "nginx"}
        commands = {name: p.command for name, p in running.items() if p is not None}
        start = f"{self.folder}/releases/"
        return {n: c.removeprefix(start).split("/")[0] for n, c in commands.items()}

    def pids(self) -> dict[str, int]:
        return {name: state.pid for name, state in Supervisor(self.layout).states().items()}

    def all_run(self, version: str) -> bool:
        return set(self.versions().values()) == {version} and self.is_whole()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    return Wheels(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module")
def cell(wheels: Wheels) -> Iterator[Installed]:
    """Two workers that run 1.0.0."""
    folder = Path(tempfile.mkdtemp(prefix="zc-", dir="/tmp"))
    running = Installed(folder, workers=2)
    install(running.releases, wheels["1.0.0"], "1.0.0")
    with ended(running, folder):
        running.up()
        yield running


@contextlib.contextmanager
def nothing_changes(cell: Installed) -> Iterator[None]:
    before = cell.pids()
    yield
    assert cell.pids() == before


def tables(cell: Installed) -> set[str]:
    with contextlib.closing(sqlite3.connect(cell.layout.database)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}


def test_version_that_cannot_be_imported_touches_nothing(cell: Installed, wheels: Wheels) -> None:
    async def scenario() -> None:
        async with cell.traffic():
            with nothing_changes(cell):
                done = await cell.run("upgrade", str(wheels["1.3.0"]))
        assert done.returncode == 1
        assert "cannot be loaded" in done.stdout
        assert "RuntimeError: broken at import" in done.stdout
        assert "The running cell is untouched." in done.stderr
        assert "1.3.0 was refused" in done.stderr
        assert cell.all_run("1.0.0")

    asyncio.run(scenario())


def test_version_whose_workers_do_not_warm_up_is_taken_back(
    cell: Installed, wheels: Wheels
) -> None:
    async def scenario() -> None:
        w2 = cell.pids()["w2"]
        async with cell.traffic(resends=True):
            done = await cell.run("upgrade", str(wheels["1.4.0"]))
            await cell.all_open()
        assert done.returncode == 1
        assert "broken at warm-up" in done.stderr
        assert "1.4.0 failed; the cell runs 1.0.0 again" in done.stderr
        assert cell.all_run("1.0.0")
        assert cell.pids()["w2"] == w2, "it was not reached"
        assert cell.releases.current.name == "1.0.0"
        assert "nothing to change" in (await cell.run("up", "--no-draw")).stdout

    asyncio.run(scenario())


def test_migrating_version_and_back(cell: Installed, wheels: Wheels) -> None:
    async def scenario() -> None:
        nginx = cell.layout.nginx_pid.read_text()
        supervisord = cell.layout.supervisor_pid.read_text()
        async with cell.traffic(resends=True):
            done = await cell.run("upgrade", str(wheels["1.2.0"]))
            assert done.returncode == 0, done.stdout + done.stderr
            assert cell.all_run("1.2.0")
            assert "of_1_2_0" in tables(cell)
            back = await cell.run("rollback")
        assert back.returncode == 0, back.stdout + back.stderr
        assert "the cell runs 1.0.0; 1.2.0 comes back with: zimage rollback" in back.stdout
        assert cell.all_run("1.0.0")
        assert "of_1_2_0" in tables(cell)
        assert cell.layout.nginx_pid.read_text() == nginx
        assert cell.layout.supervisor_pid.read_text() == supervisord

    asyncio.run(scenario())


@prove
def test_good_version_stays_and_the_oldest_goes(cell: Installed, wheels: Wheels) -> None:
    async def scenario() -> None:
        async with cell.traffic(resends=True):
            done = await cell.run("upgrade", str(wheels["1.1.0"]))
        assert done.returncode == 0, done.stdout + done.stderr
        assert cell.all_run("1.1.0")
        assert (await cell.run("--version")).stdout.startswith("zimage 1.1.0 (release in ")
        kept = {path.name for path in (cell.folder / "releases").glob("[!.]*")}
        assert kept == {"1.0.0", "1.1.0"}
        assert "nothing to change" in (await cell.run("up", "--no-draw")).stdout

    asyncio.run(scenario())


def test_version_is_made_of_one_wheel_only(cell: Installed, wheels: Wheels) -> None:
    other = wheels.folder / "other" / wheels["1.0.0"].name
    other.parent.mkdir()
    shutil.copy(wheels["1.2.0"], other)
    done = cell.zimage("upgrade", str(other))
    assert done.returncode == 1
    assert "a version never changes" in done.stderr


Moment = Callable[[Installed, Record | None], bool]
"""Given what the command has written down by now."""


def comes_to(worker: str, step: Step) -> Moment:
    return lambda _, found: found is not None and found.workers.get(worker) is step


MOMENTS: dict[str, Moment] = {
    "makes the environment": lambda cell, _: (cell.releases.folder("1.5.0") / "bin").exists(),
    "checks": lambda _, found: found is not None and not found.target,
    "migrates": lambda cell, _: MIGRATES.exists(),
    "restarts the guard": lambda _, found: found is not None and "guard" in found.doing,
    "drains w1": comes_to("w1", Step.DRAINING),
    "restarts w1": comes_to("w1", Step.RESTARTING),
    "opens w1": comes_to("w1", Step.OPENING),
    "restarts w2": comes_to("w2", Step.RESTARTING),
    "opens w2": comes_to("w2", Step.OPENING),
    "sets the link": lambda _, found: found is not None and found.outcome == "done",
}
UP, ON, BACK = ("up", "--no-draw"), ("upgrade", "1.5.0"), ("rollback",)
KILLED = [
    ("upgrade", "makes the environment", UP),
    ("upgrade", "migrates", UP),
    ("upgrade", "restarts the guard", BACK),
    ("upgrade", "drains w1", ON),
    ("rollback", "restarts w1", BACK),
    ("upgrade", "restarts w1", UP),
    ("upgrade", "opens w1", BACK),
    ("upgrade", "restarts w2", UP),
    ("upgrade", "sets the link", ON),
    ("rollback", "opens w2", UP),
    ("rollback", "checks", BACK),
]
"""Which command, when it is killed, and what is typed then."""


def killed(cell: Installed, moment: Moment, *words: str) -> None:
    """The whole session of ``zimage`` with ``words``, at this moment of it."""
    began = time.time()
    MIGRATES.unlink(missing_ok=True)
    with subprocess.Popen(
        [*cell.program, *words],
        cwd="/",
        env={**os.environ, "ZIMAGE_CONFIG": str(cell.config_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as command:

        def reached() -> bool:
            found = rollout_record.read(cell.layout)
            return moment(cell, found if found is not None and found.since > began else None)

        assert processes.wait_for(reached, 120.0, every_s=0.01), words
        os.killpg(command.pid, signal.SIGKILL)


async def converge(cell: Installed, words: tuple[str, ...]) -> None:
    done = await cell.run(*words)
    assert done.returncode == 0, (words, done.stdout + done.stderr)
    assert cell.all_run(cell.releases.current.name), (words, cell.versions())
    again = await cell.run("up", "--no-draw")
    assert "nothing to change" in again.stdout, (words, again)


@prove
@pytest.mark.timeout(900)
def test_upgrade_and_rollback_converge_wherever_they_are_killed(
    cell: Installed, wheels: Wheels
) -> None:
    arguments = {"upgrade": ("upgrade", str(wheels["1.5.0"])), "rollback": ("rollback",)}

    async def scenario() -> None:
        async with cell.traffic(resends=True) as traffic:
            for command, moment, then in KILLED:
                since = len(traffic.outcomes)
                await asyncio.to_thread(killed, cell, MOMENTS[moment], *arguments[command])
                await converge(cell, then)
                note(traffic, f"{command} killed as it {moment}; then {then[0]}", since)

    try:
        asyncio.run(scenario())
    finally:
        MIGRATES.unlink(missing_ok=True)


class Checkout(Installed):
    """A cell of a checkout with an environment of its own."""

    @property
    def program(self) -> list[str | Path]:
        return [self.folder / ".venv" / "bin" / "python", "-P", "-m", "deploy.cli.app"]


@pytest.fixture
def checkout() -> Iterator[Checkout]:
    folder = Path(tempfile.mkdtemp(prefix="zc-", dir="/tmp"))
    copy_of_the_code(folder)
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder / ".venv")]
    subprocess.run(command, check=True)
    packages = next((folder / ".venv" / "lib").glob("python*")) / "site-packages"
    (packages / "paths.pth").write_text(f"{folder}\n{SHARED}\n")
    running = Checkout(folder, workers=2)
    with ended(running, folder):
        running.up()
        yield running


@prove
def test_checkout_rolls_to_code_that_loads_and_to_a_release_and_back(
    checkout: Checkout, wheels: Wheels
) -> None:
    async def scenario() -> None:
        nginx = checkout.layout.nginx_pid.read_text()
        code = checkout.folder / "worker" / "server.py"
        good = code.read_text()
        async with checkout.traffic(resends=True):
            code.write_text(good + "\nraise RuntimeError('broken at import')\n")
            with nothing_changes(checkout):
                refused = await checkout.run("up", "--no-draw")
            assert refused.returncode == 1
            assert "RuntimeError: broken at import" in refused.stdout
            assert "The running cell is untouched." in refused.stderr

            before = checkout.pids()
            code.write_text(good + "\n# changed\n")
            rolled = await checkout.run("up", "--no-draw")
            assert rolled.returncode == 0, rolled.stdout + rolled.stderr
            after = checkout.pids()
            assert {name for name in after if after[name] != before[name]} == {"w1", "w2"}

            done = await checkout.run("upgrade", str(wheels["1.0.0"]))
            assert done.returncode == 0, done.stdout + done.stderr
            assert checkout.all_run("1.0.0")
            assert (await checkout.run("--version")).stdout.startswith("zimage 1.0.0 (release")

            back = await checkout.run("rollback")
            assert back.returncode == 0, back.stdout + back.stderr
            assert not (checkout.folder / "current").is_symlink()
            assert "1.0.0" not in checkout.versions().values()
        assert checkout.layout.nginx_pid.read_text() == nginx

    asyncio.run(scenario())
