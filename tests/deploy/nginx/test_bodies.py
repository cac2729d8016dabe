"""Large bodies: on disk instead of in memory, and few of an address at a time."""

import contextlib
import re
import resource
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.rendering import certificate
from tests.deploy.nginx.site import Site, nginx_command, site
from tests.deploy.processes import wait_until
from tests.ports import free_port

DRAW = "/v1/images/generations"
LARGE = b'{"direct": true, "x": "%b"}' % (b"x" * 100_000)
SMALL = b'{"direct": true, "x": "%b"}' % (b"x" * 90_000)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two large bodies of an address at a time."""
    nginx = {"max_large_bodies_per_address": 2, "max_requests_per_s_per_address": 0}
    listen = {"port": free_port(), "auth": "none", "trusted_proxies": ["127.0.0.1"]}
    var_dir = tmp_path_factory.mktemp("few")
    with site(var_dir, listen=listen, nginx=nginx, tls={"self_signed": True}) as few:
        yield few


@contextlib.contextmanager
def body_begun(site: Site, head: str, body: bytes) -> Iterator[None]:
    """A request for a job that has sent ``body`` and owes the rest."""
    port = site.config.listen.port
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n".encode())
        connection.sendall(body)
        yield


def nginx_workers(site: Site) -> list[int]:
    return children_of(int(site.layout.nginx_pid.read_text(encoding="utf-8")))


def children_of(pid: int) -> list[int]:
    told = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
    return [int(child) for child in told.split()]


def memory_kib(site: Site) -> int:
    """Private memory of nginx's worker processes."""
    rollups = [
        Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8") for pid in nginx_workers(site)
    ]
    found = [re.findall(r"^Private_\w+: +(\d+) kB", rollup, re.M) for rollup in rollups]
    return sum(int(kib) for kibs in found for kib in kibs)


def bytes_on_disk(site: Site) -> int:
    """Of bodies that nginx holds as files, which have no name any more."""
    return bytes_in_files(site, nginx_workers(site))


def bytes_in_files(site: Site, pids: list[int]) -> int:
    """The same of processes ``pids``."""
    folder, total = str(site.layout.tmp_dir / "body"), 0
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since
                total += fd.stat().st_size if str(fd.readlink()).startswith(folder) else 0
    return total


@pytest.mark.parametrize("told", ["Content-Length: 8000000", "Transfer-Encoding: chunked"])
def test_large_bodies_that_nobody_vouches_for_are_not_in_memory(front: Site, told: str) -> None:
    """Twelve times 7 MiB; of none would a worker see anything before its last byte."""
    size = 7 << 20
    body = b"x" * size if "Length" in told else b"%x\r\n%b\r\n" % (size, b"x" * size)
    before = memory_kib(front)
    with contextlib.ExitStack() as held:
        for _ in range(12):
            held.enter_context(body_begun(front, told, body))
        wait_until(lambda: bytes_on_disk(front) > 12 * (size - 200_000), "all there")
        assert memory_kib(front) - before < 12 << 10
    wait_until(lambda: bytes_on_disk(front) == 0, "forgotten")


@pytest.mark.parametrize("http2", [False, True])
def test_few_large_bodies_of_an_address_at_a_time(few: Site, http2: bool) -> None:
    trust, never = certificate.trusting(few.layout), threading.Event()
    mine, neighbour, stranger = (
        {"X-Forwarded-For": f"2001:db8:{http2:d}:{net}::{host}"}
        for net, host in ((1, 1), (1, 2), (2, 1))
    )

    def sent(content: Any, address: dict[str, str]) -> int:
        base_url = str(few.client.base_url)
        with httpx.Client(base_url=base_url, verify=trust, timeout=60, http2=http2) as client:
            return client.post(DRAW, content=content, headers=address).status_code

    def unfinished() -> Iterator[bytes]:
        yield LARGE + b" " * 200_000
        assert never.wait(60)

    with few.worker("w1"), ThreadPoolExecutor() as pool:
        held = [pool.submit(sent, unfinished(), mine) for _ in range(2)]
        wait_until(lambda: bytes_on_disk(few) > 400_000, "there")
        for address in (mine, neighbour):
            assert sent(iter([b"{}"]), address) == 429  # nobody has told how long it is
            if not http2:  # httpx would wait to send it all, though it was answered
                assert sent(LARGE, address) == 429
        assert sent(SMALL, mine) == 200
        assert sent(LARGE, stranger) == 200
        never.set()
        assert [one.result() for one in held] == [200, 200]
        assert sent(LARGE, mine) == 200


def test_many_networks_cannot_fill_the_disk_together(few: Site) -> None:
    """Two of an address are allowed here, so 32 of all: whoever has a /48 has 65,536 networks."""
    trust, address = certificate.trusting(few.layout), ("127.0.0.1", few.config.listen.port)

    def begun(network: int) -> ssl.SSLSocket:
        """A request that owes its end."""
        plain = socket.create_connection(address, timeout=30)
        connection = trust.wrap_socket(plain, server_hostname="localhost")
        head = f"POST {DRAW} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n"
        head += f"X-Forwarded-For: 2001:db8:77:{network:x}::1\r\n\r\n"
        connection.sendall(head.encode() + b"x" * 100_000)
        return connection

    with few.worker("w1"), contextlib.ExitStack() as held:
        for network in range(32):
            held.enter_context(begun(network))
        wait_until(lambda: bytes_on_disk(few) >= 32 * 80_000, "there")
        refused = held.enter_context(begun(32))
        assert refused.recv(64).startswith(b"HTTP/1.1 429 ")
        small = few.client.post(DRAW, content=SMALL, headers={"X-Forwarded-For": "2001:db8:78::1"})
        assert small.status_code == 200
    wait_until(lambda: bytes_on_disk(few) == 0, "forgotten")


@pytest.mark.parametrize("path", [DRAW, "/v1/jobs", "/v1/images/x"])
def test_full_disk_is_a_json_error_for_large_bodies_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    # As under supervisord: nginx is told that it may write no more, instead of killed.
    program = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
    monkeypatch.setattr(
        "tests.deploy.nginx.site.nginx_command",
        lambda *args: [sys.executable, "-c", program, *nginx_command(*args)],
    )
    with site(tmp_path, listen={"port": free_port(), "auth": "none"}) as full, full.worker("w1"):
        for pid in nginx_workers(full):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))
        headers = {"Content-Type": "application/json"}
        for content in (b"x" * 500_000, iter([b"x" * 300_000])):
            reply = full.client.post(path, content=content, headers=headers)
            assert (reply.status_code, reply.json()["error"]["code"]) == (500, "server_error")
            assert "disk may be full" in reply.json()["error"]["message"]
        assert full.draw(direct=True, filler="x" * 90_000).status_code == 200
