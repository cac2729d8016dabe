"""What one address may do, which addresses are believed, and what other sites may not."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.nginx.site import Site, nginx_command, site
from tests.deploy.processes import running, wait_until
from tests.ports import free_port

DRAW = "/v1/images/generations"
PROXY, STRANGER = "127.0.0.1", "127.0.0.9"


NETWORK = 'location = /network { return 200 "$client_network"; }\n'


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Small limits, and one trusted proxy."""
    var_dir = tmp_path_factory.mktemp("strict")
    (var_dir / "web").mkdir()
    (var_dir / "web" / "index.html").write_text("<title>Z</title>")
    with site(
        var_dir,
        listen={"port": free_port(), "auth": "none", "trusted_proxies": [PROXY, "10.9.0.0/16"]},
        nginx={
            "max_requests_per_s_per_address": 5,
            "max_connections_per_address": 2,
            "client_timeout_s": 1.0,
        },
        slot=NETWORK,
    ) as strict:
        yield strict


@contextlib.contextmanager
def client_at(site: Site, address: str) -> Iterator[httpx.Client]:
    """A client whose connections come from ``address``."""
    transport = httpx.HTTPTransport(local_address=address)
    base_url = str(site.client.base_url)
    with httpx.Client(base_url=base_url, transport=transport, timeout=60) as client:
        yield client


def drawn_for(client: httpx.Client, **headers: str) -> dict[str, Any]:
    """The headers that the worker saw."""
    reply = client.post(DRAW, json={"direct": True}, headers=headers)
    return dict(reply.json()["headers"])


@pytest.mark.parametrize(
    ("said", "believed"),
    [
        ("6.6.6.6", "6.6.6.6"),
        ("1.1.1.1, 6.6.6.6, 10.9.3.4", "6.6.6.6"),
        ("nonsense", PROXY),
        ("2001:db8::7", "2001:db8::7"),
    ],
)
def test_trusted_proxy_is_believed(strict: Site, said: str, believed: str) -> None:
    with strict.worker("w1"):
        seen = drawn_for(strict.client, **{"X-Forwarded-For": said, "X-Forwarded-Proto": "https"})
    assert (seen["x-real-ip"], seen["x-forwarded-for"]) == (believed, believed)
    assert seen["x-forwarded-proto"] == "https"


def test_stranger_is_not_believed(strict: Site) -> None:
    with strict.worker("w1"), client_at(strict, STRANGER) as stranger:
        seen = drawn_for(stranger, **{"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https"})
    assert (seen["x-real-ip"], seen["x-forwarded-for"]) == (STRANGER, STRANGER)
    assert seen["x-forwarded-proto"] == "http"


def test_requests_beyond_the_rate_are_refused_for_that_address_alone(strict: Site) -> None:
    noisy, quiet = {"X-Forwarded-For": "7.7.7.7"}, {"X-Forwarded-For": "8.8.8.8"}
    with strict.worker("w1"):
        replies = [strict.client.get("/v1/models", headers=noisy) for _ in range(40)]
        assert strict.client.get("/v1/models", headers=quiet).status_code == 200
    refused = [reply for reply in replies if reply.status_code == 429]
    assert 11 <= len(replies) - len(refused) < 40
    assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"
    assert 2 <= int(refused[0].headers["Retry-After"]) <= 5


def addresses_with_rows_of_zeros() -> list[str]:
    """IPv6 addresses with every choice of groups that are zero, and so every place of the "::"."""
    groups = ["2001", "db8", "1", "abcd", "5", "ff", "7", "8000"]
    return [
        ":".join(group if zeros >> k & 1 else "0" for k, group in enumerate(groups))
        for zeros in range(256)
    ]


def test_ipv6_counts_by_network(strict: Site) -> None:
    """As nginx prints them, "::" may stand anywhere; four groups are the network all the same."""
    networks = {}
    for address in addresses_with_rows_of_zeros():
        reply = strict.client.get("/network", headers={"X-Forwarded-For": address})
        networks[address] = reply.text
    wanted = {address: ":".join(address.split(":")[:4]) for address in networks}
    assert networks == wanted


@pytest.mark.parametrize(
    ("address", "network"),
    [
        *(("::1", "0:0:0:0"), ("::", "0:0:0:0"), ("10.9.8.7", "10.9.8.7")),
        *(("::ffff:10.9.8.7", "10.9.8.7"), ("::10.9.8.7", "0:0:0:0")),
        ("2001:0DB8:0000:0001:0:0:0:1", "2001:db8:0:1"),
    ],
)
def test_every_spelling_of_an_address_is_one_client(
    strict: Site, address: str, network: str
) -> None:
    assert strict.client.get("/network", headers={"X-Forwarded-For": address}).text == network


def test_limits_of_an_ipv6_network_hold_over_its_addresses(strict: Site) -> None:
    with strict.worker("w1"):
        replies = [
            strict.client.get("/v1/models", headers={"X-Forwarded-For": f"2001:db8:9:9:{k:x}::1"})
            for k in range(40)
        ]
        other = {"X-Forwarded-For": "2001:db8:9:8::1"}
        assert strict.client.get("/v1/models", headers=other).status_code == 200
    assert {reply.status_code for reply in replies} == {200, 429}
    with strict.worker("w1"), contextlib.ExitStack() as streams:
        for k in range(2):
            headers = {"X-Forwarded-For": f"2001:db8:7:7::{k}"}
            stream = strict.client.stream("POST", DRAW, json={"stream": True}, headers=headers)
            assert streams.enter_context(stream).status_code == 200
        third = {"X-Forwarded-For": "2001:db8:7:7:ffff::"}
        assert strict.client.get("/v1/models", headers=third).status_code == 429


def test_connections_beyond_the_limit_are_refused_for_that_address_alone(strict: Site) -> None:
    many, other = {"X-Forwarded-For": "7.1.1.1"}, {"X-Forwarded-For": "8.1.1.1"}
    with strict.worker("w1"), contextlib.ExitStack() as open_streams:
        for _ in range(2):
            stream = strict.client.stream("POST", DRAW, json={"stream": True}, headers=many)
            assert open_streams.enter_context(stream).status_code == 200
        assert strict.client.get("/v1/models", headers=many).status_code == 429
        assert strict.client.get("/v1/models", headers=other).status_code == 200


def test_head_that_drips_is_cut_off(strict: Site) -> None:
    """A slow loris: one byte every 0.2 s would hold the connection for ever."""
    with socket.create_connection(("127.0.0.1", strict.config.listen.port)) as connection:
        connection.settimeout(0.2)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        assert _ends(connection, b"x")


def test_body_that_stalls_is_cut_off(strict: Site) -> None:
    head = f"POST {DRAW} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{"
    with (
        strict.worker("w1"),
        socket.create_connection(("127.0.0.1", strict.config.listen.port)) as connection,
    ):
        connection.settimeout(0.2)
        connection.sendall(head.encode())
        assert _ends(connection, b"")


def test_reader_that_stalls_is_cut_off(strict: Site) -> None:
    body = b'{"bytes": 30000000}'
    head = f"POST {DRAW} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with (
        strict.worker("w1"),
        socket.create_connection(("127.0.0.1", strict.config.listen.port)) as connection,
    ):
        connection.sendall(head.encode() + body)
        time.sleep(4)  # reads nothing for longer than it may
        connection.settimeout(30)
        got = 0
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(1 << 20):
                got += len(chunk)
    assert 0 < got < 30_000_000


def test_hundred_lorises_do_not_keep_others_out(strict: Site) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(100):
            address = ("127.0.0.1", strict.config.listen.port)
            lazy = held.enter_context(socket.create_connection(address))
            lazy.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n")
        with strict.worker("w1"):
            assert strict.draw(direct=True).status_code == 200


def _ends(connection: socket.socket, drip: bytes) -> bool:
    """Whether the other side closes within 30 s although ``drip`` comes again and again."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            if drip:
                connection.sendall(drip)
            if not connection.recv(4096):
                return True
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://evil.example", 403),
        ("null", 403),
        ("http://127.0.0.1", 403),  # another port is another site
        ("https://localhost.evil.example", 403),
        (None, 200),
    ],
)
def test_pages_of_other_sites_may_not_post(front: Site, origin: str | None, status: int) -> None:
    headers = {} if origin is None else {"Origin": origin}
    with front.worker("w1"):
        reply = front.client.post(DRAW, json={"direct": True}, headers=headers)
        own = {"Origin": f"http://127.0.0.1:{front.config.listen.port}"}
        assert front.client.post(DRAW, json={"direct": True}, headers=own).status_code == 200
        assert front.client.get("/v1/models", headers=headers).status_code == 200
    assert reply.status_code == status
    if status == 403:
        assert reply.json()["error"]["code"] == "cross_site"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "SHOUT"])
def test_no_method_that_changes_something_is_for_other_sites(front: Site, method: str) -> None:
    headers = {"Origin": "http://evil.example"}
    with front.worker("w1"):
        assert front.client.request(method, "/v1/jobs/x", headers=headers).status_code == 403


@pytest.mark.parametrize("path", ["/", "/v1/models", DRAW, "/cell.json", "/readyz"])
def test_loopback_cell_answers_to_no_foreign_name(front: Site, path: str) -> None:
    """DNS rebinding: a page's own name is led to 127.0.0.1, so that it may read what it asks."""
    with front.worker("w1"):
        for client in (front.client, front.ops):
            reply = client.get(path, headers={"Host": "evil.example:7860"})
            assert (reply.status_code, reply.json()["error"]["code"]) == (
                421,
                "misdirected_request",
            )


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1", "[::1]:7860"])
def test_loopback_cell_answers_to_its_own_names(front: Site, host: str) -> None:
    assert front.client.get("/healthz", headers={"Host": host}).status_code == 200


def sent(site: Site, head: str) -> tuple[int, str]:
    """Status and error code of the answer to ``head``, over a connection of its own."""
    with socket.create_connection(("127.0.0.1", site.config.listen.port), timeout=30) as connection:
        connection.sendall(head.encode())
        reply = b"".join(iter(lambda: connection.recv(65536), b""))
    status, _, body = reply.decode().partition("\r\n\r\n")
    code = json.loads(body)["error"]["code"] if '"error"' in body else ""
    return int(status.split()[1]), code


@pytest.mark.parametrize("path", ["/", "/v1/models", DRAW, "/cell.json", "/readyz"])
@pytest.mark.parametrize(
    "header",
    [
        *("X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https", "X-Forwarded-Host: draw.example"),
        *("Forwarded: for=6.6.6.6", "Via: 1.1 squid", "X-Real-IP: 6.6.6.6", "x-real-ip: 127.0.0.1"),
        *("CF-Connecting-IP: 6.6.6.6", "CF-Ray: 1-AMS", "CDN-Loop: cloudflare", "X-Client-IP: ::1"),
    ],
)
def test_loopback_cell_draws_for_nobody_behind_a_proxy(front: Site, path: str, header: str) -> None:
    """The proxy is on this machine and names it as Host, so only this tells it from a program."""
    with front.worker("w1"):
        host = f"127.0.0.1:{front.config.listen.port}"
        name, _, value = header.partition(": ")
        for method in ("GET", "POST"):
            headers = {"Host": host, name: value}
            reply = front.client.request(method, path, headers=headers)
            error = reply.json()["error"]
            assert (reply.status_code, error["code"]) == (421, "behind_a_proxy")
            assert "auth = keys" in error["message"]
            assert "trusted_proxies" in error["message"]


@pytest.mark.parametrize("path", ["/", "/v1/models", "/healthz"])
def test_loopback_cell_takes_http_1_0_for_a_proxy(front: Site, path: str) -> None:
    """nginx before 1.29.7 speaks it to what it stands before, and sets no header by default."""
    head = f"GET {path} HTTP/1.%d\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    with front.worker("w1"):
        assert sent(front, head % 0) == (421, "behind_a_proxy")
        assert sent(front, head % 1)[1] != "behind_a_proxy"


@pytest.mark.parametrize("protocol", ["HTTP/1.0", "HTTP/1.1"])
def test_real_proxy_before_a_loopback_cell_is_refused(
    front: Site, tmp_path: Path, protocol: str
) -> None:
    """A second nginx, as somebody sets one up in five lines."""
    port = free_port()
    upgraded = "proxy_http_version 1.1; proxy_set_header X-Forwarded-For $remote_addr;"
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid {tmp_path}/pid; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {tmp_path}/b; proxy_temp_path {tmp_path}/p;"
        f" fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u;"
        f" scgi_temp_path {tmp_path}/s; server {{ listen 127.0.0.1:{port}; location / {{\n"
        f"proxy_pass http://127.0.0.1:{front.config.listen.port};"
        f"{upgraded if protocol == 'HTTP/1.1' else ''} }} }} }}\n"
    )
    command = [nginx_command(front.layout)[0], "-c", str(tmp_path / "nginx.conf"), "-e", "stderr"]
    with front.worker("w1"), running(command, tmp_path / "log"):
        reply = wait_until(lambda: _asked(f"http://127.0.0.1:{port}{DRAW}"), "proxied")
    assert (reply.status_code, reply.json()["error"]["code"]) == (421, "behind_a_proxy")


def _asked(url: str) -> httpx.Response | None:
    with contextlib.suppress(httpx.ConnectError):
        return httpx.post(url, json={"direct": True}, timeout=30)
    return None


def test_loopback_cell_answers_a_proxy_that_is_named(tmp_path: Path) -> None:
    named = {"port": free_port(), "trusted_proxies": [PROXY]}
    with site(tmp_path, listen=named) as behind, behind.worker("w1"):
        said = {"X-Forwarded-For": "6.6.6.6", "Via": "1.1 proxy"}
        assert drawn_for(behind.client, **said)["x-real-ip"] == "6.6.6.6"
        with client_at(behind, STRANGER) as stranger:
            assert stranger.get("/v1/models", headers=said).status_code == 421


@pytest.mark.parametrize("auth", ["keys", "none"])
def test_cell_with_an_answer_to_who_may_draw_stands_behind_any_proxy(
    tmp_path: Path, auth: str
) -> None:
    with site(tmp_path, listen={"port": free_port(), "auth": auth}) as behind, behind.worker("w1"):
        reply = behind.client.get("/v1/models", headers={"X-Forwarded-For": "6.6.6.6"})
        assert reply.status_code == 200
        assert sent(behind, "GET /v1/models HTTP/1.0\r\n\r\n")[0] == 200


def test_cell_for_everybody_answers_to_every_name(tmp_path: Path) -> None:
    everybody = {"port": free_port(), "address": "0.0.0.0", "auth": "none"}
    with site(tmp_path, listen=everybody) as open_to_all:
        reply = open_to_all.client.get("/healthz", headers={"Host": "draw.example.com"})
        assert reply.status_code == 200
        # The ops address is loopback's alone, whatever the page listens on.
        outside = socket.gethostbyname(socket.gethostname())
        if not outside.startswith("127."):
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"http://{outside}:{open_to_all.config.ops.port}/cell.json", timeout=5)
            assert httpx.get(
                f"http://{outside}:{open_to_all.config.listen.port}/healthz"
            ).is_success


def test_every_answer_forbids_guessing_its_type(front: Site) -> None:
    with front.worker("w1"):
        replies = [front.client.get(p) for p in ("/v1/models", "/none", "/healthz", "/cell.json")]
        replies.append(front.draw(direct=True))
        replies.append(front.draw(direct=False))
    assert {reply.headers["X-Content-Type-Options"] for reply in replies} == {"nosniff"}


def test_parallel_strangers_do_not_share_a_limit(strict: Site) -> None:
    codes: list[int] = []

    def ask(k: int) -> None:
        headers = {"X-Forwarded-For": f"9.9.9.{k}"}
        codes.append(strict.client.get("/v1/models", headers=headers).status_code)

    with strict.worker("w1"):
        threads = [threading.Thread(target=ask, args=(k,)) for k in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert codes == [200] * 12


@pytest.mark.parametrize(
    "path", ["/v1/images", "/v1/images/x", "/v1/models", "/v1/jobs", "/v1/session", DRAW]
)
def test_every_part_of_the_api_asks_where_a_page_is_from(front: Site, path: str) -> None:
    headers = {"Origin": "http://evil.example"}
    with front.worker("w1"):
        reply = front.client.post(path, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "cross_site")
