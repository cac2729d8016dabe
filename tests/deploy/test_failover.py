"""nginx, guard and supervisord together: workers die in every way and no client notices."""

import concurrent.futures
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.guard.conftest import WORKERS, Cell, started
from tests.deploy.nginx.site import Site, site
from tests.deploy.processes import wait_until

pytestmark = pytest.mark.cluster

CLIENTS, SLOW_CLIENTS = 10, 2
FAULTS = ("kill", "stop", "hang", "kill", "block", "stop", "kill", "hang")


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Site, Cell]]:
    # A worker that only waits for a busy machine is not the second one that is out.
    rules = {"mass_silence_hold_s": 0.0, "silence_s": 1.5}
    with site(tmp_path) as front, started(front.layout, **rules) as cell:
        yield front, cell


def inflict(fault: str, name: str, site: Site, cell: Cell) -> None:
    pid = wait_until(lambda: cell.pid(name), "there")
    if fault == "kill":
        os.kill(pid, signal.SIGKILL)
    elif fault == "stop":
        os.kill(pid, signal.SIGSTOP)
    else:
        # Sent through nginx: this request, too, must be answered, by another worker. Only the one
        # that it names hangs on it.
        while cell.pid(name) == pid:
            assert site.draw(prompt=f"{fault} {name}").is_success
    cell.wait_replaced(name, pid)


def test_no_request_fails_while_workers_fail_one_by_one(both: tuple[Site, Cell]) -> None:
    front, cell = both
    over = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(CLIENTS + SLOW_CLIENTS) as pool:
        clients = [pool.submit(_draw_until, over, _quick(front), n) for n in range(CLIENTS)]
        clients += [pool.submit(_draw_until, over, _slow(front), n) for n in range(SLOW_CLIENTS)]
        try:
            for n, fault in enumerate(FAULTS):
                inflict(fault, WORKERS[n % len(WORKERS)], front, cell)
        finally:
            over.set()
        drawn = [client.result() for client in clients]
    assert min(drawn) > 0
    assert sum(cell.worker(name)["restarts"] for name in WORKERS) >= len(FAULTS)


def _draw_until(over: threading.Event, draw: Callable[[dict[str, Any]], Any], client: int) -> int:
    """How many drawings this client got; AssertionError at the first that is not what it asked."""
    drawn = 0
    while not over.is_set():
        asked = {"prompt": f"{client}-{drawn}", "seconds": 0.1, "bytes": 2_000_000 * (drawn % 3)}
        reply = draw(asked)
        assert reply["asked"] == asked
        assert len(reply["filler"]) == asked["bytes"]
        drawn += 1
    return drawn


def _quick(front: Site) -> Callable[[dict[str, Any]], Any]:
    def draw(asked: dict[str, Any]) -> Any:
        reply = front.draw(**asked)
        assert reply.status_code == 200, reply.text
        return reply.json()

    return draw


def _slow(front: Site) -> Callable[[dict[str, Any]], Any]:
    """Reads 64 KB at a time, with pauses."""

    def draw(asked: dict[str, Any]) -> Any:
        body = json.dumps(asked).encode()
        head = (
            "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", front.config.listen.port), 60) as connection:
            connection.sendall(head.encode() + body)
            reply = b""
            while part := connection.recv(65536):
                reply += part
                time.sleep(0.005)
        status, _, content = reply.partition(b"\r\n\r\n")
        assert b" 200 " in status[:20], status
        return json.loads(content)

    return draw
