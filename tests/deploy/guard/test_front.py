"""The real guard of a front under a real supervisord, with real links to hosts that fail."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deploy import links
from deploy.guard.gate import make_closed_socket
from deploy.host import processes
from deploy.layout import Layout
from deploy.rendering.plan import LinkPlan
from deploy.supervision.supervise import Supervisor
from tests.deploy.certificates import Authority
from tests.deploy.nginx.cluster import SHARED
from tests.deploy.nginx.site import configuration, files, write
from tests.deploy.nginx.test_bodies import children_of
from tests.deploy.processes import PATIENCE_S, cell_state, running, wait_until
from tests.ports import free_port

WORKER = {"open": True, "predicted_wait_s": 2.5, "full": False}


class FakeHost:
    """What a front meets of a host, in a thread: TLS for fronts alone, two answers, and faults."""

    def __init__(self, name: str, authority: Authority, var_dir: Path) -> None:
        self.name = name
        self.layout = Layout(var_dir / name, var_dir / name / "run")
        authority.equip(self.layout, "host")
        self.port = free_port()
        self.status, self.workers = 200, [dict(WORKER)]
        self._speaks = asyncio.Event()
        self._speaks.set()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(
            self.layout.cluster_certificate("host"), self.layout.cluster_key("host")
        )
        self._tls.load_verify_locations(self.layout.authority_certificate)
        self._tls.verify_mode = ssl.CERT_REQUIRED

    @property
    def row(self) -> dict[str, Any]:
        address = f"127.0.0.1:{self.port}"
        return {"id": self.name, "address": address, "role": "host", "workers": 2, "wanted": "in"}

    def fall_silent(self) -> None:
        """Take connections and requests, and say nothing."""
        self._loop.call_soon_threadsafe(self._speaks.clear)

    def speak(self) -> None:
        self._loop.call_soon_threadsafe(self._speaks.set)

    @contextlib.contextmanager
    def serving(self) -> Iterator["FakeHost"]:
        self._loop = loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        start = asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
        server = asyncio.run_coroutine_threadsafe(start, loop).result(PATIENCE_S)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(server.close)
            asyncio.run_coroutine_threadsafe(_cancel_others(), loop).result(PATIENCE_S)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(PATIENCE_S)
            loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await self._speaks.wait()
                state = {"at": time.time(), "workers": self.workers}
                is_state = b"cell.json" in head.split(b"\r\n")[0]
                body = json.dumps(state if is_state else {"ready": True}).encode()
                status = 200 if is_state else self.status
                writer.write(f"HTTP/1.1 {status} X\r\n".encode())
                writer.write(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
        writer.transport.abort()


async def _cancel_others() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class Entry:
    """A front's supervisord and guard, without its nginx: the gates are what nginx would ask."""

    layout: Layout
    supervisor: Supervisor
    listed: list[dict[str, Any]] = field(default_factory=list)

    def list_hosts(self, *rows: dict[str, Any], age_s: float = 0.0) -> None:
        """As membership writes them. ``age_s``: of rows that say nothing of it."""
        now = time.time()
        told = [{"at": now - age_s, **row} for row in rows]
        text = json.dumps({"at": now, "cluster": "studio", "hosts": told})
        fresh = self.layout.hosts_json.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.layout.hosts_json)

    def host(self, name: str) -> dict[str, Any]:
        hosts = cell_state(self.layout).get("hosts", ())
        return next((host for host in hosts if host["name"] == name), {})

    def is_open(self, name: str, *, reading: bool = False) -> bool:
        link = self.host(name).get("link", "none")
        gate = self.layout.gate(LinkPlan(link, 1).reading if reading else link)
        return gate.is_symlink() and gate.readlink() == self.layout.link_socket(link)

    def wait_open(self, *names: str) -> None:
        wait_until(lambda: all(self.is_open(name) for name in names), f"open: {names}")

    def wait_state(self, name: str, state: str) -> None:
        wait_until(lambda: self.host(name).get("state") == state, f"{name} {state}")

    def connect(self, name: str) -> socket.socket:
        """As nginx does behind the gate, for a request."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE_S)
        connection.connect(str(self.layout.link_socket(self.host(name)["link"])))
        return connection

    def alarms(self) -> set[str]:
        return {alarm["name"] for alarm in cell_state(self.layout)["alarms"]}

    def pid(self, name: str) -> int:
        return self.supervisor.states()[f"link-{self.host(name)['link']}"].pid


@contextlib.contextmanager
def entry_of(var_dir: Path, authority: Authority) -> Iterator[Entry]:
    layout = Layout(var_dir, var_dir / "run")
    told = {"name": "studio", "role": "front"}
    texts = files(configuration(var_dir, **SHARED, cluster=told), layout)
    write(layout, texts)
    authority.equip(layout, "front")
    make_closed_socket(layout.closed_socket)
    command = [sys.executable, "-W", "ignore", "-m", "supervisor.supervisord", "-n"]
    command += ["-c", str(layout.supervisord_conf)]
    with running(command, layout.log("supervisord.out")):
        supervisor = Supervisor(layout)
        wait_until(supervisor.answers, "supervising")
        supervisor.start("guard")
        yield Entry(layout, supervisor)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def hosts(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[tuple[FakeHost, FakeHost]]:
    var_dir = tmp_path_factory.mktemp("hosts")
    a, b = (FakeHost(name, authority, var_dir) for name in ("a", "b"))
    with a.serving(), b.serving():
        yield a, b


@pytest.fixture(scope="module")
def entry(
    tmp_path_factory: pytest.TempPathFactory,
    authority: Authority,
    hosts: tuple[FakeHost, FakeHost],
) -> Iterator[Entry]:
    """All tests share it; each leaves both hosts in the pool."""
    with entry_of(tmp_path_factory.mktemp("front"), authority) as entry:
        entry.list_hosts(*(host.row for host in hosts))
        entry.wait_open("a", "b")
        yield entry


Pair = tuple[FakeHost, FakeHost]


def test_hosts_that_answer_are_in_by_a_link_each(entry: Entry, hosts: Pair) -> None:
    state = wait_until(
        lambda: (s := cell_state(entry.layout))["pool"]["open"] == 2 and s, "all workers known"
    )
    assert state["ready"]
    assert [(h["name"], h["link"], h["state"]) for h in state["hosts"]] == [
        ("a", "h1", "ready"),
        ("b", "h2", "ready"),
    ]
    assert [h["wait_s"] for h in state["hosts"]] == [2.5, 2.5]
    assert state["pool"]["of"] == 4
    assert set(links.read(entry.layout)) == {"h1", "h2"}
    assert links.in_use(entry.layout) == {"h1": 2, "h2": 2}


def test_silent_host_goes_out_and_what_is_on_its_way_is_freed(entry: Entry, hosts: Pair) -> None:
    a, _ = hosts
    with entry.connect("a") as request:
        a.fall_silent()
        wait_until(lambda: not entry.is_open("a"), "out")
        assert entry.is_open("b")
        assert request.recv(1) == b""  # the link is ended
    entry.wait_state("a", "lost")
    a.speak()
    entry.wait_open("a", "b")


def test_what_is_on_its_way_to_a_drained_host_is_freed_once_that_is_lost(
    entry: Entry, hosts: Pair
) -> None:
    a, b = hosts
    with entry.connect("a") as request:
        entry.list_hosts({**a.row, "wanted": "out"}, b.row)
        entry.wait_state("a", "out")
        a.fall_silent()
        request.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        assert request.recv(1) == b""
    a.speak()
    entry.list_hosts(a.row, b.row)
    entry.wait_open("a", "b")


def test_what_waits_at_a_link_that_hangs_is_freed(entry: Entry) -> None:
    """Though its host answers the guard."""
    with entry.connect("a") as request:
        for process in children_of(entry.pid("a")):
            os.kill(process, signal.SIGSTOP)
        wait_until(lambda: not entry.is_open("a"), "out")
        assert request.recv(1) == b""
    entry.wait_open("a", "b")


def test_the_only_link_goes_on_listening_when_what_waits_at_it_is_freed(
    entry: Entry, hosts: Pair
) -> None:
    a, b = hosts
    entry.list_hosts(a.row, {**b.row, "wanted": "out"})
    entry.wait_state("b", "out")
    pid = entry.pid("a")
    with entry.connect("a") as request:
        for process in children_of(pid):
            os.kill(process, signal.SIGSTOP)
        assert request.recv(1) == b""
    entry.wait_state("a", "ready")
    assert entry.pid("a") == pid
    entry.list_hosts(a.row, b.row)
    entry.wait_open("a", "b")


def test_nothing_is_closed_while_no_host_answers(entry: Entry, hosts: Pair) -> None:
    a, b = hosts
    with entry.connect("a"):
        a.fall_silent()
        b.fall_silent()
        entry.wait_state("a", "lost")
        entry.wait_state("b", "lost")
        assert (entry.is_open("a"), entry.is_open("b")) == (True, True)
        a.speak()
        entry.wait_state("a", "ready")
        wait_until(lambda: not entry.is_open("b"), "out, now that one answers")
    b.speak()
    entry.wait_open("a", "b")


def test_full_host_is_out_for_drawing_alone(entry: Entry, hosts: Pair) -> None:
    a, b = hosts
    a.workers = [{**WORKER, "full": True, "predicted_wait_s": 130.0}] * 2
    entry.wait_state("a", "full")
    assert (entry.is_open("a"), entry.is_open("a", reading=True)) == (False, True)
    b.workers = [{**WORKER, "full": True, "predicted_wait_s": 125.0}, {**WORKER, "open": False}]
    entry.wait_state("b", "full")
    soonest = entry.layout.gate("soonest")
    wait_until(lambda: soonest.readlink() == entry.layout.link_socket("h2"), "b has room first")
    a.workers, b.workers = [dict(WORKER)], [dict(WORKER)]
    entry.wait_open("a", "b")


def test_host_that_is_not_ready_or_wanted_is_out_at_once(entry: Entry, hosts: Pair) -> None:
    a, b = hosts
    a.status = 503
    wait_until(lambda: not entry.is_open("a"), "out")
    pid = entry.pid("a")
    a.status = 200
    entry.wait_open("a")
    entry.list_hosts({**a.row, "wanted": "out"}, b.row)
    entry.wait_state("a", "out")
    assert not entry.is_open("a")
    entry.list_hosts(a.row, b.row)
    entry.wait_open("a", "b")
    assert entry.pid("a") == pid  # it was never ended: it answered


def test_host_without_a_row_goes_out_but_never_the_last(entry: Entry, hosts: Pair) -> None:
    a, b = hosts
    entry.list_hosts(b.row)
    entry.list_hosts({**a.row, "at": time.time() - 61}, b.row)
    entry.wait_state("a", "stale")
    wait_until(lambda: not entry.is_open("a"), "out")
    entry.list_hosts(a.row, b.row, age_s=61.0)
    entry.wait_state("b", "stale")
    assert entry.is_open("a") or entry.is_open("b")
    entry.list_hosts(a.row, b.row)
    entry.wait_open("a", "b")


def test_killed_link_comes_back(entry: Entry) -> None:
    pid = entry.pid("a")
    left = children_of(pid)
    entry.supervisor.signal("link-h1", "KILL")
    wait_until(lambda: entry.pid("a") not in (0, pid), "started again")
    entry.wait_open("a", "b")
    wait_until(lambda: not any(map(processes.read, left)), "nothing of it is left")


def test_host_whose_link_does_not_run_is_out(entry: Entry) -> None:
    """Though it answers the guard."""
    conf = entry.layout.link_conf("h1")
    text = conf.read_text()
    conf.write_text("broken")
    entry.supervisor.signal("link-h1", "KILL")
    wait_until(lambda: not entry.is_open("a"), "out")
    wait_until(lambda: "link does not run" in entry.host("a")["why"], "told")
    conf.write_text(text)
    entry.wait_open("a", "b")


def test_new_host_takes_a_spare_link(
    entry: Entry, hosts: Pair, authority: Authority, tmp_path: Path
) -> None:
    a, b = hosts
    with FakeHost("c", authority, tmp_path).serving() as c:
        entry.list_hosts(a.row, b.row, c.row)
        entry.wait_open("c")
        assert entry.host("c")["link"] == "h3"
        entry.list_hosts(a.row, b.row, {**c.row, "wanted": "removed"})
        wait_until(lambda: not entry.host("c"), "no longer shown")
    entry.list_hosts(a.row, b.row)


def test_a_stranger_at_a_hosts_address_is_out(entry: Entry, hosts: Pair, tmp_path: Path) -> None:
    a, b = hosts
    with FakeHost("d", Authority(), tmp_path).serving() as d:
        entry.list_hosts(a.row, b.row, d.row)
        entry.wait_state("d", "untrusted")
        assert not entry.is_open("d")
        entry.list_hosts(a.row, b.row, {**d.row, "wanted": "removed"})
        wait_until(lambda: not entry.host("d"), "no longer shown")


def test_an_address_that_is_none_reaches_no_configuration(entry: Entry, hosts: Pair) -> None:
    a, b = hosts
    evil = {**a.row, "id": "e", "address": "127.0.0.1:1; } http { }"}
    entry.list_hosts(a.row, b.row, evil)
    entry.list_hosts(a.row, b.row, evil, {**b.row, "wanted": "out"})
    entry.wait_state("b", "out")  # the list was read
    assert not entry.host("e")
    entry.list_hosts(a.row, b.row)
    entry.wait_open("a", "b")


def test_guard_that_is_killed_leaves_the_pool_and_takes_it_up(entry: Entry) -> None:
    pids = entry.pid("a"), entry.pid("b")
    entry.supervisor.signal("guard", "KILL")
    assert entry.is_open("a")
    started = time.time()
    wait_until(lambda: cell_state(entry.layout)["at"] > started + 1, "a new guard tells")
    entry.wait_open("a", "b")
    assert (entry.pid("a"), entry.pid("b")) == pids


def test_metrics_tell_of_each_host(entry: Entry) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(entry.layout.guard_socket))
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    assert 'zimage_host_in_pool{host="a"} 1.0' in text
    assert 'zimage_host_state{host="b",state="ready"} 1.0' in text
    assert 'zimage_host_ejections_total{host="a",reason="' in text
