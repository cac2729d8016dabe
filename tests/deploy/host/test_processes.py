import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.config import ROOT
from deploy.host import processes

# A leader that starts one child, says so, and waits, as supervisord does.
LEADER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
child.wait()
"""

DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(flush=True)
time.sleep(60)
"""


@pytest.fixture
def session() -> Iterator[tuple[subprocess.Popen[str], int]]:
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert leader.stdout is not None
    child = int(leader.stdout.readline())
    yield leader, child
    for pid in (leader.pid, child):
        if process := processes.read(pid):
            process.send(signal.SIGKILL)
    leader.wait(timeout=10)
    leader.stdout.close()


def test_members_are_found_after_their_leader_was_killed(
    tmp_path: Path, session: tuple[subprocess.Popen[str], int]
) -> None:
    leader, child = session
    record = tmp_path / "processes.json"
    processes.record(record, leader.pid, cell="test")
    assert {p.pid for p in processes.members(record)} == {leader.pid, child}
    leader.kill()
    leader.wait(timeout=10)
    assert processes.leader(record) is None
    assert [p.pid for p in processes.members(record)] == [child]
    assert processes.note(record) == {"cell": "test"}


def test_a_number_that_belongs_to_somebody_else_by_now_is_left_alone(
    tmp_path: Path, session: tuple[subprocess.Popen[str], int]
) -> None:
    leader, _ = session
    record = tmp_path / "processes.json"
    processes.record(record, leader.pid)
    started = processes.read(leader.pid)
    assert started is not None
    record.write_text(record.read_text().replace(str(started.started), "1"))
    assert processes.members(record) == []


def test_end_asks_first_and_kills_what_does_not_listen() -> None:
    with subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE) as deaf:
        assert deaf.stdout is not None
        deaf.stdout.readline()
        process = processes.read(deaf.pid)
        assert process is not None
        assert processes.end([process], 0.3, signal.SIGTERM) == []
        assert deaf.wait(timeout=10) == -signal.SIGKILL


def test_no_record_means_no_processes(tmp_path: Path) -> None:
    assert processes.members(tmp_path / "none.json") == []
    (tmp_path / "broken.json").write_text("{")
    assert processes.leader(tmp_path / "broken.json") is None


def test_own_process_is_read_with_its_age() -> None:
    me = processes.read(os.getpid())
    assert me is not None
    assert me.alive
    assert processes.age_s(me) > 0


STARTER = """
import signal, subprocess, sys
from deploy.host import processes
child = subprocess.Popen(["sleep", "60"], preexec_fn=processes.bound(signal.SIGKILL))
print(child.pid, flush=True)
child.wait()
"""


def test_child_that_is_bound_ends_with_whoever_started_it() -> None:
    with subprocess.Popen([sys.executable, "-c", STARTER], cwd=ROOT, stdout=subprocess.PIPE) as it:
        assert it.stdout is not None
        child = processes.read(int(it.stdout.readline()))
        assert child is not None
        it.kill()
    assert processes.wait_gone([child], 10.0) == []
