import os
import subprocess
import time

from worker.coordination.processes import is_alive


def test_this_process_is_alive() -> None:
    assert is_alive(os.getpid(), time.monotonic())


def test_ended_process_is_dead_before_and_after_it_is_reaped() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(process.pid, time.monotonic())
    process.wait()
    assert not is_alive(process.pid, time.monotonic())


def test_younger_process_of_the_same_number_is_another() -> None:
    assert not is_alive(os.getpid(), time.monotonic() - 86_400)
