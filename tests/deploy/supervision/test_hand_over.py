"""nginx's program is changed under clients: the new one takes over, and nobody is refused."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deploy.config import ROOT
from deploy.host import orphans, processes
from deploy.supervision import nginx_program
from tests.deploy.processes import wait_until
from tests.ports import free_ports

CONF = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    server {{ listen 127.0.0.1:{port}; return 200 $pid; }}
}}
"""
# A session as supervisord's: each line starts the program anew.
SESSION = 'while read -r _; do "$@" & echo $!; done; wait'


class Site:
    """An nginx with its attendant, in a session of its own."""

    def __init__(self, folder: Path) -> None:
        [self.port] = free_ports(1)
        self.nginx, self.conf = folder / "nginx", folder / "nginx.conf"
        self.record = folder / "processes.json"
        self.conf.write_text(CONF.format(folder=folder, port=self.port))
        shutil.copy2(shutil.which("nginx") or "/usr/sbin/nginx", self.nginx)
        program = [sys.executable, "-P", "-m", "deploy.supervision.nginx_program", str(self.nginx)]
        files = self.conf, self.record
        self.leader = subprocess.Popen(
            ["/bin/bash", "-c", SESSION, "session", *program, folder, *files],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        processes.record(self.record, self.leader.pid)

    def start(self) -> int:
        """The pid of another attendant."""
        assert self.leader.stdin is not None
        assert self.leader.stdout is not None
        self.leader.stdin.write("\n")
        self.leader.stdin.flush()
        lines = iter(self.leader.stdout.readline, "")
        return next(int(line) for line in lines if line.strip().isdigit())

    def said(self) -> str:
        """The next line of an attendant."""
        assert self.leader.stdout is not None
        return self.leader.stdout.readline()

    def master(self) -> processes.Process | None:
        """The youngest that serves."""
        masters = nginx_program.running_masters(self.record, str(self.conf))
        return masters[-1] if masters else None

    def answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self.port}").status_code == 200
        return False

    def change_program(self) -> None:
        newer = self.nginx.with_suffix(".new")
        newer.write_bytes(self.nginx.read_bytes() + b"\0")
        newer.chmod(0o755)
        newer.replace(self.nginx)

    def runs_what_lies_there(self) -> bool:
        return nginx_program.noted(self.record).read_text() == nginx_program.digest(self.nginx)

    def hand_over(self, attendant: int) -> None:
        before = self.master()
        assert before is not None
        self.change_program()
        os.kill(attendant, signal.SIGUSR2)
        wait_until(self.runs_what_lies_there, "handed over")
        wait_until(lambda: not before.alive, "ended")
        assert self.master() not in (None, before)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    try:
        yield site
    finally:
        for process in processes.members(site.record):
            process.send(signal.SIGKILL)
        site.leader.communicate(timeout=10)


@contextlib.contextmanager
def asking(site: Site) -> Iterator[list[str]]:
    """A new connection each time; what went wrong."""
    wrong: list[str] = []
    done = threading.Event()

    def ask() -> None:
        while not done.wait(0.003):
            try:
                httpx.get(f"http://127.0.0.1:{site.port}").raise_for_status()
            except httpx.HTTPError as error:
                wrong.append(repr(error))

    client = threading.Thread(target=ask)
    client.start()
    try:
        yield wrong
    finally:
        done.set()
        client.join(10)


def test_changed_program_takes_over_and_nobody_is_refused(site: Site) -> None:
    attendant = site.start()
    wait_until(site.answers, "serving")
    with asking(site) as wrong:
        site.hand_over(attendant)
        end(attendant)
        attendant = site.start()  # and again under the next one, who adopts it
        wait_until(lambda: attends(attendant), "there")
        site.hand_over(attendant)
    assert wrong == []
    assert site.answers()
    os.kill(attendant, signal.SIGQUIT)
    wait_until(lambda: site.master() is None, "ended in order")


def test_program_that_does_not_start_leaves_the_old_one_alone(site: Site) -> None:
    attendant = site.start()
    wait_until(site.answers, "serving")
    old = site.master()
    broken = site.nginx.with_suffix(".new")
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    broken.replace(site.nginx)
    os.kill(attendant, signal.SIGUSR2)
    wait_until(lambda: "does not take over" in site.said(), "told")
    now = site.master()
    assert now is not None
    assert old is not None
    # Whose child it is may change meanwhile.
    assert (now.pid, now.started, site.answers()) == (old.pid, old.started, True)
    assert not site.runs_what_lies_there()


def end(attendant: int) -> None:
    """As a takeover does: nginx, to which all signals are passed on, is to stay."""
    process = processes.read(attendant)
    assert process is not None
    left = orphans.Orphans((), (), (process,), {}, (), ())
    assert orphans.end_attendants(left) == []


def attends(pid: int) -> bool:
    """Whether it obeys signals by now."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGUSR2 - 1) & 1)


def test_hand_over_that_was_cut_short_is_finished_by_the_next_attendant(site: Site) -> None:
    """Killed between the start of the new master and the end of the old one."""
    attendant = site.start()
    wait_until(site.answers, "serving")
    old = site.master()
    assert old is not None
    end(attendant)
    wait_until(lambda: processes.read(old.pid).parent != attendant, "let go")  # type: ignore[union-attr]
    old.send(signal.SIGUSR2)
    wait_until(lambda: site.master() != old, "two masters")
    with asking(site) as wrong:
        site.start()
        wait_until(lambda: not old.alive, "finished")
    assert wrong == []
