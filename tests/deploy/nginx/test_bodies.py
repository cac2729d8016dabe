"""Large bodies: on disk instead of in memory, and few of an address at a time."""

import contextlib
import re
import resource
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy import certificate
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
    pid = site.layout.nginx_pid.read_text(encoding="utf-8").strip()
    return [
        int(pid)
        for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    ]


def memory_kib(site: Site) -> int:
    """Private memory of nginx's worker processes."""
    rollups = [
        Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8") for pid in nginx_workers(site)
    ]
    found = [re.findall(r"^Private_\w+: +(\d+) kB", rollup, re.M) for rollup in rollups]
    return sum(int(kib) for kibs in found for kib in kibs)


def bytes_on_disk(site: Site) -> int:
    """Of bodies that nginx holds as files, which have no name any more."""
    folder, total = str(site.layout.tmp_dir / "body"), 0
    for pid in nginx_workers(site):
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
