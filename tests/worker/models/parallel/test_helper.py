"""A real worker on two processes of the CPU, which live and die together."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.worker.processes import WorkerProcess, wait_until, worker
from worker import exits
from worker.coordination.processes import PARENT, is_alive, stat

pytestmark = pytest.mark.long
LOADED_S = 120.0  # both processes import torch, at worst on one core


def helper_of(pid: int) -> int:
    """Its only child."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    (child,) = " ".join(each.read_text() for each in children).split()
    return int(child)


@pytest.fixture(scope="module")
def running() -> Iterator[Callable[[], WorkerProcess]]:
    """A worker that lives: the one of the test before, or a new one."""
    with ExitStack() as stack:
        started: list[WorkerProcess] = []

        def living() -> WorkerProcess:
            if not started or started[-1].process.poll() is not None:
                home = Path(stack.enter_context(TemporaryDirectory(prefix="zw-", dir="/tmp")))
                new = worker(home, model="tiny", device="cpu,cpu", step_allowance_s="60")
                started.append(stack.enter_context(new).wait_ready(LOADED_S))
            return started[-1]

        yield living


@pytest.fixture
def joined(running: Callable[[], WorkerProcess]) -> WorkerProcess:
    return running()


def dead(pid: int) -> bool:
    return not is_alive(pid, time.monotonic())


def test_the_helper_is_in_the_group_that_the_guard_kills(joined: WorkerProcess) -> None:
    helper = helper_of(joined.process.pid)
    fields = stat(helper)
    assert fields is not None
    assert int(fields[PARENT]) == joined.process.pid
    assert os.getpgid(helper) == os.getpgid(joined.process.pid)


def test_a_killed_helper_ends_the_worker_at_once(joined: WorkerProcess) -> None:
    os.kill(helper_of(joined.process.pid), signal.SIGKILL)
    assert joined.wait() == exits.HELPER_LOST
    assert "helper lost" in joined.tell()


def test_a_killed_worker_leaves_no_helper_not_even_a_stopped_one(joined: WorkerProcess) -> None:
    helper = helper_of(joined.process.pid)
    os.kill(helper, signal.SIGSTOP)
    joined.signal(signal.SIGKILL)
    joined.wait()
    wait_until(lambda: dead(helper))


def test_a_stop_of_the_whole_group_lets_the_running_picture_be_finished(
    joined: WorkerProcess,
) -> None:
    helper, answers = helper_of(joined.process.pid), []
    drawing = threading.Thread(target=lambda: answers.append(joined.draw("a red circle")))
    drawing.start()
    wait_until(joined.has)
    os.kill(helper, signal.SIGTERM)  # as supervisor does with stopasgroup
    joined.signal(signal.SIGTERM)
    drawing.join()
    assert answers[0].status_code in (200, 503)  # drawn, or handed back before it had begun
    assert joined.wait() == 0
    wait_until(lambda: dead(helper))
