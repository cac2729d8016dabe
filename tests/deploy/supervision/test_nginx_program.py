"""Which nginx is the cell's own, with processes that only call themselves so."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.config import ROOT
from deploy.host import processes
from deploy.supervision.nginx_program import release_port, running_masters
from tests.deploy.processes import wait_until

CONF = "/srv/var/render/nginx.conf"
MASTER = f"nginx: master process /usr/sbin/nginx -p /srv/var/ -c {CONF}"
WORKER = "nginx: worker process"


@contextmanager
def session(record: Path | None, *titles: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A session of processes with ``titles``, recorded as the cell's."""
    script = "".join(f'(exec -a "{title}" sleep 60) & ' for title in titles) + "wait"
    with subprocess.Popen(["/bin/bash", "-c", script], cwd=ROOT, start_new_session=True) as leader:
        try:
            wait_until(lambda: len(of(leader, "nginx:")) == len(titles), "there")
            if record is not None:
                processes.record(record, leader.pid)
            yield leader
        finally:
            os.killpg(leader.pid, signal.SIGKILL)


def of(leader: "subprocess.Popen[bytes]", title: str) -> list[processes.Process]:
    found = (p for p in processes._all() if p.session == leader.pid and not p.zombie)
    return [p for p in found if p.command.startswith(title)]


def test_master_of_the_cell_is_found_without_a_pid_file(tmp_path: Path) -> None:
    record = tmp_path / "processes.json"
    with session(None, MASTER), session(record, MASTER) as ours:
        assert running_masters(record, CONF) == of(ours, MASTER)
        assert running_masters(record, "/srv/other.conf") == []


FORKING = """
import os, subprocess, sys, time
title = sys.argv[1]
subprocess.Popen(["bash", "-c", f'(exec -a "{title}" sleep 60) & exec -a "{title}" sleep 60'])
time.sleep(60)
"""


def test_worker_that_was_just_forked_is_no_master(tmp_path: Path) -> None:
    """It has its master's title for a moment."""
    record = tmp_path / "processes.json"
    command = [sys.executable, "-c", FORKING, MASTER]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as leader:
        try:
            processes.record(record, leader.pid)
            wait_until(lambda: len(of(leader, MASTER)) == 2, "forked")
            [master] = running_masters(record, CONF)
            assert [p.parent for p in of(leader, MASTER) if p != master] == [master.pid]
        finally:
            os.killpg(leader.pid, signal.SIGKILL)


def test_workers_of_a_dead_master_leave_and_nobody_else_does(tmp_path: Path) -> None:
    record = tmp_path / "processes.json"
    with session(None, WORKER) as theirs, session(record, WORKER, WORKER) as ours:
        release_port(record, CONF)
        wait_until(lambda: not of(ours, WORKER), "gone")
        assert len(of(theirs, WORKER)) == 1


def test_number_of_a_former_session_is_somebody_elses_by_now(tmp_path: Path) -> None:
    record = tmp_path / "processes.json"
    with session(record, WORKER) as theirs:
        started = processes.read(theirs.pid)
        assert started is not None
        record.write_text(record.read_text().replace(str(started.started), "1"))
        release_port(record, CONF)
        assert len(of(theirs, WORKER)) == 1


def test_workers_of_a_front_without_its_master_leave_and_links_stay(tmp_path: Path) -> None:
    record = tmp_path / "processes.json"
    link = MASTER.replace(CONF, "/srv/var/links/h1.conf")
    with session(record, WORKER) as front, session(record, link, WORKER) as links:
        processes.record(record, front.pid)
        release_port(record, CONF)
        wait_until(lambda: not of(front, WORKER), "gone")
        assert len(of(links, "nginx:")) == 2


def test_workers_of_a_living_master_stay(tmp_path: Path) -> None:
    record = tmp_path / "processes.json"
    with session(record, MASTER, WORKER) as ours:
        release_port(record, CONF)
        assert len(of(ours, "nginx:")) == 2
