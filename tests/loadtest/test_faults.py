"""Faults on processes that are no cell."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.config import ROOT
from loadtest.faults.catalogue import FAULTS
from tests.deploy.processes import wait_until

_COUNTS = "import sys, time\nwhile True: print(time.monotonic(), flush=True); time.sleep(0.01)"


@pytest.fixture
def counting() -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen([sys.executable, "-c", _COUNTS], stdout=subprocess.PIPE, text=True) as p:
        yield p
        p.kill()


def test_frozen_thread_stands_still_until_it_is_let_go(counting: "subprocess.Popen[str]") -> None:
    assert counting.stdout is not None
    counting.stdout.readline()
    command = [sys.executable, "-m", "loadtest.faults.freeze", str(counting.pid), "main"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        said = holder.stdout.readline()
        if said != "frozen\n":
            pytest.skip(f"no tracing here: {said}")
        held_from = time.monotonic()
        os.set_blocking(counting.stdout.fileno(), False)
        os.read(counting.stdout.fileno(), 1 << 16)  # what it had said before
        state = Path(f"/proc/{counting.pid}/stat")
        wait_until(
            lambda: state.read_text(encoding="utf-8").split()[2] == "t", "stopped"
        )  # soon, not at once
        held_s = time.monotonic() - held_from
        holder.communicate("")
    os.set_blocking(counting.stdout.fileno(), True)
    assert float(counting.stdout.readline()) > held_from + held_s


def test_every_fault_is_described_and_bounded() -> None:
    for fault in FAULTS.values():
        assert fault.what
        assert 0 <= fault.hold_s <= 30
        assert 0 < fault.heal_s <= 120
