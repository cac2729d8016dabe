"""Rollouts that are interrupted, while clients draw: nothing is lost, and the cell heals."""

import asyncio
import contextlib
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy import rollout_record
from deploy.config import ROOT
from deploy.host import processes
from deploy.rollout_record import Step
from deploy.supervision.supervise import Supervisor
from loadtest.faults import process_ids
from tests import command_line
from tests.cluster.conftest import STEPS, RunningCell, edit, note, started
from tests.deploy.processes import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.long]


long = pytest.mark.skipif(not os.environ.get("PROVE"), reason="minutes: scripts/prove rollouts")
CLIENTS = 20 if os.environ.get("PROVE") else 12


@pytest.fixture(scope="module")
def cell() -> Iterator[RunningCell]:
    with started(model=f"{STEPS},noise=1", workers=2) as running:
        yield running


def begin(
    cell: RunningCell, *words: str
) -> contextlib.AbstractContextManager[command_line.Command]:
    return command_line.started(words, {**os.environ, "ZIMAGE_CONFIG": str(cell.config_path)})


def record(cell: RunningCell) -> rollout_record.Record:
    found = rollout_record.read(cell.layout)
    assert found is not None
    return found


def ended_at(
    cell: RunningCell, step: Step, strike: Callable[[RunningCell], None], *words: str
) -> "subprocess.CompletedProcess[str]":
    """``zimage`` with ``words``, to its end; ``strike`` as soon as it has written down ``step``."""
    with begin(cell, *words) as command:

        def reached() -> bool:
            found = rollout_record.read(cell.layout)
            mine = found is not None and found.holder.pid == command.pid
            return mine and step in record(cell).workers.values()

        assert processes.wait_for(reached, 120.0, every_s=0.01), step
        strike(cell)
        code = command.wait(200)
        return subprocess.CompletedProcess(words, code, command.said(), command.complained())


def killed_at(cell: RunningCell, step: Step, *words: str) -> None:
    """``zimage`` with ``words``, killed as soon as it has written down ``step``."""
    ended_at(cell, step, kill_command, *words)


def kill_command(cell: RunningCell) -> None:
    os.kill(record(cell).holder.pid, signal.SIGKILL)


def kill_guard(cell: RunningCell) -> None:
    os.kill(Supervisor(cell.layout).states()["guard"].pid, signal.SIGKILL)


def kill_supervisord(cell: RunningCell) -> None:
    """What it has started goes on, as orphans."""
    leader = processes.leader(cell.layout.processes)
    assert leader is not None
    leader.send(signal.SIGKILL)


def healed(cell: RunningCell) -> bool:
    return not any(cell.layout.drained_dir.iterdir()) and cell.is_whole()


def status(cell: RunningCell) -> str:
    return cell.zimage("status").stdout


at_each_step = pytest.mark.parametrize(
    "step",
    [
        pytest.param(Step.DRAINING, marks=long),
        Step.RESTARTING,
        pytest.param(Step.OPENING, marks=long),
    ],
)


@at_each_step
def test_restart_that_is_killed_is_healed_by_the_guard_and_resumed(
    cell: RunningCell, step: Step
) -> None:
    async def scenario() -> None:
        pids = {worker: cell.pid(worker) for worker in cell.workers()}
        async with cell.traffic(clients=CLIENTS):
            await asyncio.to_thread(killed_at, cell, step, "restart", "--rolling")
            await asyncio.to_thread(wait_until, lambda: healed(cell), "healed by the guard")
            assert "was cut short: w1" in await asyncio.to_thread(status, cell)
            done = await cell.run("up", "--resume")
            assert done.returncode == 0, done.stdout + done.stderr
        assert all(cell.pid(worker) != pid for worker, pid in pids.items())
        assert record(cell).outcome == "done"
        assert "cut short" not in status(cell)

    asyncio.run(scenario())


@contextlib.contextmanager
def edited(cell: RunningCell, *changes: tuple[str, str]) -> Iterator[None]:
    """``cluster.toml`` with other words in it, during the block."""
    before = cell.config_path.read_text()
    for old, new in changes:
        edit(cell, old, new)
    try:
        yield
    finally:
        cell.config_path.write_text(before)


MORE_STEPS = ("[limits.request]", "[limits.request]\nmax_steps = 44")
THREE = ("count = 2", "count = 3")
ONE = ("count = 2", "count = 1")


@long
@pytest.mark.parametrize("step", [Step.DRAINING, Step.RESTARTING, Step.OPENING])
def test_rollout_goes_on_while_its_guard_is_killed(cell: RunningCell, step: Step) -> None:
    async def scenario() -> None:
        before = {worker: cell.pid(worker) for worker in cell.workers()}
        async with cell.traffic(clients=CLIENTS):
            done = await asyncio.to_thread(ended_at, cell, step, kill_guard, "restart", "--rolling")
        assert done.returncode == 0, done.stdout
        assert all(cell.pid(worker) != pid for worker, pid in before.items())
        assert healed(cell)

    asyncio.run(scenario())


@at_each_step
def test_rollout_without_supervisord_says_what_to_do_and_up_does_it(
    cell: RunningCell, step: Step
) -> None:
    async def scenario() -> None:
        async with cell.traffic(clients=CLIENTS):
            failed = await asyncio.to_thread(
                ended_at, cell, step, kill_supervisord, "restart", "--rolling"
            )
            assert failed.returncode == 1, failed.stdout
            last = failed.stderr.splitlines()[-1]
            assert "supervisord" in last
            assert "zimage up" in last
            done = await cell.run("up", "--no-draw")
            assert done.returncode == 0, done.stdout + done.stderr
            assert "nothing to change" in (await cell.run("up", "--no-draw")).stdout
        assert healed(cell)
        assert len(process_ids(cell.layout.guard_json)) == 1

    asyncio.run(scenario())


Strike = Callable[[RunningCell], None]


def hang_up_on_command(cell: RunningCell) -> None:
    os.kill(record(cell).holder.pid, signal.SIGHUP)


def ask_command_to_end(cell: RunningCell) -> None:
    os.kill(record(cell).holder.pid, signal.SIGTERM)


def kill_a_worker(cell: RunningCell) -> None:
    with contextlib.suppress(LookupError):  # it is being restarted
        os.kill(cell.pid("w1"), signal.SIGKILL)


STRIKES: dict[str, tuple[Strike, ...]] = {
    "the command is killed": (kill_command,),
    "its terminal is gone": (hang_up_on_command,),
    "it is asked to end": (ask_command_to_end,),
    "the guard is killed": (kill_guard,),
    "supervisord is killed": (kill_supervisord,),
    "a worker is killed": (kill_a_worker,),
    "the command and the guard are killed": (kill_guard, kill_command),
    "the command and supervisord are killed": (kill_supervisord, kill_command),
    "guard and supervisord are killed": (kill_guard, kill_supervisord),
}
COMMANDS = [
    ("restart", "--rolling"),
    ("up", "--no-draw"),
    ("calibrate", "w2", "--sizes", "64x64", "--repeats", "20"),
]
ROUNDS = 10


def struck(
    cell: RunningCell, words: tuple[str, ...], strikes: tuple[Strike, ...], after_s: float
) -> str:
    """What a command said that was struck ``after_s`` after it had begun to change the cell."""
    with begin(cell, *words) as command:
        wait_until(lambda: record(cell).holder.pid == command.pid, "begun")
        time.sleep(after_s)  # wherever it is then
        for strike in strikes:
            with contextlib.suppress(ProcessLookupError):
                strike(cell)
        command.wait(120)
        return command.said() + command.complained()


@long
@pytest.mark.timeout(900)
def test_whatever_strikes_at_whatever_moment_up_makes_it_good(cell: RunningCell) -> None:
    seed = int(os.environ.get("PROVE_SEED") or time.time())
    chance = random.Random(seed)
    kinds = list(STRIKES) + chance.choices(list(STRIKES), k=ROUNDS - len(STRIKES))
    changes = itertools.cycle([(MORE_STEPS, THREE), (MORE_STEPS,), (THREE,), ()])

    async def scenario() -> None:
        async with cell.traffic(clients=CLIENTS, resends=True) as traffic:
            for kind in kinds:
                words, after_s = chance.choice(COMMANDS), round(chance.uniform(0, 5), 2)
                since = len(traffic.outcomes)
                with edited(cell, *next(changes)):
                    said = await asyncio.to_thread(struck, cell, words, STRIKES[kind], after_s)
                    done = await cell.run("up", "--no-draw")
                    assert done.returncode == 0, (seed, kind, words, after_s, said, done)
                    again = await cell.run("up", "--no-draw")
                    assert "nothing to change" in again.stdout, (seed, kind, words, after_s, again)
                    assert healed(cell)
                await traffic.until_served(CLIENTS)
                note(traffic, f"{' '.join(words[:2])}, {after_s} s: {kind}", since)

    asyncio.run(scenario())
    assert cell.zimage("up", "--no-draw").returncode == 0


@long
def test_up_that_is_killed_is_completed_by_the_next_one(cell: RunningCell) -> None:
    async def scenario() -> None:
        async with cell.traffic(clients=CLIENTS):
            with edited(cell, MORE_STEPS):
                await asyncio.to_thread(killed_at, cell, Step.RESTARTING, "up", "--no-draw")
                previewed = await cell.run("up", "--dry-run")
                assert "would drain and restart w2" in previewed.stdout
                done = await cell.run("up", "--no-draw")
                assert done.returncode == 0, done.stdout + done.stderr
                assert "nothing to change" in (await cell.run("up", "--no-draw")).stdout
            assert (await cell.run("up", "--no-draw")).returncode == 0

    asyncio.run(scenario())


def test_dry_run_tells_what_and_why_and_touches_nothing(cell: RunningCell) -> None:
    before = record(cell), {w: cell.pid(w) for w in cell.workers()}
    assert "nothing would change" in cell.zimage("up", "--dry-run").stdout
    with edited(cell, MORE_STEPS):
        told = cell.zimage("up", "--dry-run")
    assert told.returncode == 0, told.stderr
    assert "would drain and restart w1: max_steps" in told.stdout
    assert "would drain and restart w2: max_steps" in told.stdout
    assert "nothing was touched" in told.stdout
    with edited(cell, ("[ops]", '[ops]\naddress = "127.0.0.1"'), ("noise=1", "no_such_option=1")):
        refused = cell.zimage("up", "--dry-run")
    assert refused.returncode == 1
    assert "zimage up would touch nothing" in refused.stderr
    assert (record(cell), {w: cell.pid(w) for w in cell.workers()}) == before


@long
def test_power_cut_in_the_middle_is_made_good_by_up(cell: RunningCell) -> None:
    with edited(cell, MORE_STEPS):
        killed_at(cell, Step.RESTARTING, "up", "--no-draw")
        for process in processes.members(cell.layout.processes):
            process.send(signal.SIGKILL)
        wait_until(lambda: not processes.members(cell.layout.processes), "all gone")
        done = cell.zimage("up")
        assert done.returncode == 0, done.stdout + done.stderr
        assert healed(cell)
    assert cell.zimage("up", "--no-draw").returncode == 0


def test_scaling_down_and_changing_those_that_stay_never_leaves_nobody(cell: RunningCell) -> None:
    async def scenario() -> None:
        async with cell.traffic(clients=CLIENTS, resends=True):
            with edited(cell, MORE_STEPS, ONE):
                done = await cell.run("up", "--no-draw")
                assert done.returncode == 0, done.stdout + done.stderr
                assert "nobody draws" not in done.stderr
                assert cell.open() == {"w1"}
            assert (await cell.run("up", "--no-draw")).returncode == 0

    asyncio.run(scenario())


@long
def test_those_that_go_stay_while_all_others_are_drained(cell: RunningCell) -> None:
    assert cell.zimage("drain", "w1", "--reason", "new card").returncode == 0
    with edited(cell, ONE):
        refused = cell.zimage("up", "--no-draw")
        assert refused.returncode == 1
        assert "nobody would draw without w2" in refused.stderr
        assert cell.open() == {"w2"}
    done = cell.zimage("up", "--no-draw")
    assert done.returncode == 0, done.stderr
    assert "w1 is drained by hand (new card) by" in done.stderr
    assert cell.zimage("undrain", "w1").returncode == 0
    wait_until(lambda: healed(cell), "whole")


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """Children of this process can make no file longer, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "words", [("restart", "--rolling"), pytest.param(("up", "--no-draw"), marks=long)]
)
def test_full_disk_touches_nobody_and_says_so_in_one_line(
    cell: RunningCell, words: tuple[str, ...]
) -> None:
    pids = {worker: cell.pid(worker) for worker in cell.workers()}
    with no_room():
        command = subprocess.Popen(  # a child of ours
            [sys.executable, "-m", "deploy.cli.app", *words],
            cwd=ROOT,
            env={**os.environ, "ZIMAGE_CONFIG": str(cell.config_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    said, _ = command.communicate(timeout=90)
    assert command.returncode == 1, said
    assert "Traceback" not in said
    assert "make room" in said
    assert {worker: cell.pid(worker) for worker in cell.workers()} == pids
    assert healed(cell)
    assert cell.zimage("up", "--no-draw").returncode == 0


@long
def test_supervisord_that_nobody_wrote_down_is_found_again(cell: RunningCell) -> None:
    """As after an ``up`` that was killed just after it had started it."""
    leader = processes.leader(cell.layout.processes)
    for path in (cell.layout.processes, cell.layout.run_record):
        path.unlink()
    done = cell.zimage("up", "--no-draw")
    assert done.returncode == 0, done.stdout + done.stderr
    assert processes.leader(cell.layout.processes) == leader


@long
def test_changed_program_of_nginx_takes_over_and_nobody_is_refused(
    cell: RunningCell, tmp_path: Path
) -> None:
    binary = cell.config_path.parent / "nginx"
    shutil.copy2(shutil.which("nginx") or "/usr/sbin/nginx", binary)
    with edited(cell, ("[nginx]", f'[nginx]\nbinary = "{binary}"')):
        first = cell.zimage("up", "--no-draw")
        assert first.returncode == 0, first.stdout + first.stderr
        newer = tmp_path / "nginx"
        newer.write_bytes(binary.read_bytes() + b"\0")
        newer.chmod(0o755)
        before = cell.layout.nginx_pid.read_text()
        shutil.move(newer, binary)
        assert "would let nginx's new program take over" in cell.zimage("up", "--dry-run").stdout

        async def scenario() -> None:
            async with cell.traffic(clients=CLIENTS, resends=True):
                done = await cell.run("up")
            assert done.returncode == 0, done.stdout + done.stderr

        asyncio.run(scenario())
        assert cell.layout.nginx_pid.read_text() != before
        assert "nothing to change" in cell.zimage("up", "--no-draw").stdout
    assert cell.zimage("up", "--no-draw").returncode == 0


# The last: it ends the cell.
def test_down_leaves_no_process_even_of_a_killed_supervisord(cell: RunningCell) -> None:
    kill_supervisord(cell)
    done = cell.zimage("down")
    assert done.returncode == 0, done.stderr
    assert "none is left" in done.stdout
    assert processes.members(cell.layout.processes) == []
    assert cell.zimage("status").returncode == 1
