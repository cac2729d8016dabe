"""What nginx adds, hides, logs and serves itself."""

import json
import os
import pwd
import re
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.rendering.render import NGINX_DIGEST
from tests.deploy.nginx.site import (
    Site,
    SiteLayout,
    configuration,
    files,
    nginx_command,
    site,
    write,
)
from tests.ports import free_port

CSP = "Content-Security-Policy"


@pytest.fixture(autouse=True, scope="module")
def page(front: Site) -> None:
    for name, text in (
        ("web/index.html", "<title>Z</title>"),
        ("web/js/app.js", "let x = 1;\n" * 500),
        ("web/.secret", "none of yours"),
        ("images/pic.png", "a picture"),
        ("state/cell.json", '{"ready": true}'),
    ):
        path = front.layout.var_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_clients_cannot_set_what_nginx_says_of_them(tmp_path: Path) -> None:
    forged = {"X-Request-ID": "mine", "X-Request-Start": "1", "X-Real-IP": "6.6.6.6"}
    forged |= {"X-Forwarded-For": "6.6.6.6", "X-Again": "yes"}
    listen = {"port": free_port(), "auth": "none"}  # a loopback cell refuses some of these
    with site(tmp_path, listen=listen) as open_to_all, open_to_all.worker("w1"):
        reply = open_to_all.client.post("/v1/images/generations", json={}, headers=forged)
    seen = reply.json()["headers"]
    assert re.fullmatch("[0-9a-f]{32}", seen["x-request-id"])
    assert re.fullmatch(r"\d{10}\.\d{3}", seen["x-request-start"])
    assert seen["x-again"] == "1"
    assert (seen["x-real-ip"], seen["x-forwarded-for"]) == ("127.0.0.1", "127.0.0.1")
    assert (seen["connection"], seen["host"]) == ("close", f"127.0.0.1:{listen['port']}")


def test_the_senders_trace_reaches_the_worker(front: Site) -> None:
    told = {"traceparent": f"00-{'ab' * 16}-{'12' * 8}-01", "tracestate": "a=b"}
    with front.worker("w1"):
        reply = front.client.post("/v1/images/generations", json={}, headers=told)
    assert told.items() <= reply.json()["headers"].items()


def test_access_log_tells_the_whole_story(front: Site) -> None:
    with front.worker("w1"):
        agent = {"User-Agent": 'quote " and \\ and {'}
        reply = front.client.post("/v1/images/generations?key=x", json={}, headers=agent)
    line = front.log_of(reply.json()["headers"]["x-request-id"])
    assert (line["method"], line["path"]) == ("POST", "/v1/images/generations")
    assert (line["status"], line["worker"], line["queue_ms"]) == (200, "w1", "12")
    assert line["upstream_status"].endswith("200")
    # nginx reads two clocks, of which each is a millisecond coarse.
    assert line["seconds"] + 0.002 >= float(line["upstream_s"].split(", ")[-1]) >= 0
    assert line["user_agent"] == agent["User-Agent"]


ODD = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"ab\x80" * 2000]
PLACES = [
    b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nUser-Agent: %b",
    b"POST /v1/images/%b HTTP/1.1\r\nHost: x",
    b"POST /v1/images/generations?x=%b HTTP/1.1\r\nHost: x",
    b"POST /v1/images/generations HTTP/1.1\r\nHost: %b",
    b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nReferer: %b\r\nX-Odd-%b: %b\r\nCookie: %b",
    b"%b /v1/images/generations HTTP/1.1\r\nHost: x",
    b"GET / %b",
]


@pytest.mark.parametrize("place", PLACES)
def test_every_line_is_json_whatever_bytes_came(front: Site, place: bytes) -> None:
    before = len(front.layout.access_log.read_bytes().splitlines())
    with front.worker("w1"):
        for odd in ODD:
            head = place.replace(b"%b", odd) + b"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            with socket.create_connection(("127.0.0.1", front.config.listen.port), 10) as raw:
                raw.sendall(head)
                assert raw.makefile("rb").read().startswith((b"HTTP/1.1 ", b"<html>", b"{"))
        last = front.client.post("/v1/images/generations", json={})
    front.log_of(last.json()["headers"]["x-request-id"])
    lines = front.layout.access_log.read_bytes().splitlines()[before:]
    assert len(lines) >= len(ODD) + 1
    assert all(json.loads(line.decode())["status"] >= 200 for line in lines)


@pytest.mark.parametrize("text", ["狐狸/1.0", "Ärger\U0001f98a", "x" * 4000, "狐" * 1500, ""])
def test_what_is_utf8_is_logged_as_it_came(front: Site, text: str) -> None:
    with front.worker("w1"):
        agent = [(b"User-Agent", text.encode())]
        reply = front.client.post("/v1/images/generations", json={}, headers=agent)
    assert front.log_of(reply.json()["headers"]["x-request-id"])["user_agent"] == text


@pytest.mark.parametrize("direct", [True, False])
def test_reply_out_of_a_file_looks_like_any_other(front: Site, direct: bool) -> None:
    odd = {"Range": "bytes=0-3", "If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"}
    with front.worker("w1"):
        asked = {"direct": direct, "bytes": 9}
        reply = front.client.post("/v1/images/generations", json=asked, headers=odd)
    assert (reply.status_code, reply.json()["asked"]) == (200, asked)
    assert reply.headers["Content-Type"].startswith("application/json")
    assert (reply.headers["X-Worker"], reply.headers["X-Queue-Ms"]) == ("w1", "12")
    line = front.log_of(reply.json()["headers"]["x-request-id"])
    assert (line["method"], line["path"]) == ("POST", "/v1/images/generations")


def test_page_is_guarded_and_revalidated(front: Site) -> None:
    reply = front.client.get("/")
    assert reply.text == "<title>Z</title>"
    assert "default-src 'none'" in reply.headers[CSP]
    assert "frame-ancestors 'none'" in reply.headers[CSP]
    assert "unsafe" not in reply.headers[CSP]
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Referrer-Policy"] == "no-referrer"
    again = front.client.get("/", headers={"If-None-Match": reply.headers["ETag"]})
    assert (again.status_code, reply.headers["Cache-Control"]) == (304, "no-cache")


def test_scripts_are_compressed_and_typed(front: Site) -> None:
    reply = front.client.get("/js/app.js")
    assert reply.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert reply.headers["Content-Encoding"] == "gzip"
    assert CSP in reply.headers


def test_server_names_no_version(front: Site) -> None:
    assert front.client.get("/").headers["Server"] == "nginx"


@pytest.mark.parametrize(
    "path",
    [
        *("/.secret", "/admin/drain", "/livez", "/metrics", "/nginx_status", "/fake/ready"),
        *("/internal/images/pic.png", "/errors/503", "/workers/w1/metrics"),
        *(
            "/guard/metrics",
            "/nginx/metrics",
            "/nginx/configuration",
            "/ops/history.json",
            "/ops/",
            "/ops/ops.js",
        ),
        *(
            "/ops/docs/runbook.md",
            "/internal/ops",
        ),
    ],
)
def test_inner_addresses_are_not_there_for_clients(front: Site, path: str) -> None:
    with front.worker("w1"):
        assert front.client.get(path).status_code == 404


def test_picture_is_sent_when_the_worker_allows_it(front: Site) -> None:
    with front.worker("w1"):
        reply = front.client.get("/v1/images/files/pic.png?signature=x")
        missing = front.client.get("/v1/images/files/none.png")
    assert (reply.text, reply.headers["Content-Type"]) == ("a picture", "image/png")
    assert "sandbox" in reply.headers[CSP]
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")


def test_health_readiness_and_state(front: Site) -> None:
    assert front.client.get("/healthz").json() == {"status": "ok"}
    assert front.client.get("/readyz").status_code == 503
    state = front.client.get("/cell.json")
    assert (state.json(), state.headers["Cache-Control"]) == ({"ready": True}, "no-store")
    with front.worker("w2"):
        assert front.client.get("/readyz").json()["ready"]
        refused = front.client.post("/readyz", content=b"x" * 500_000)
        assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD")


def test_operators_see_nginx_and_workers_that_are_out(front: Site) -> None:
    with front.worker("w1"):
        front.gate("w1").close()
        assert front.ops.get("/workers/w1/metrics").text == "w1 /metrics"
    reply = front.ops.get("/nginx/metrics")
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families = {family.name for family in text_string_to_metric_families(reply.text)}
    assert families == {"zimage_nginx_connections", "zimage_nginx_build_info"}
    digest = (front.layout.render_dir / NGINX_DIGEST).read_text()
    assert digest == f"return 200 {front.ops.get('/nginx/configuration').text};\n"
    assert front.ops.get("/nginx_status").text.startswith("Active connections")
    assert front.ops.get("/cell.json").json() == {"ready": True}


def test_error_log_stays_quiet_about_normal_work(front: Site) -> None:
    log = front.layout.nginx_error_log
    before = log.stat().st_size
    with front.worker("w1"), front.worker("w2"), front.worker("w3"):
        for direct in (True, False):
            assert front.draw(bytes=30_000_000, direct=direct).status_code == 200
    assert log.read_bytes()[before:] == b""


def test_configuration_is_clean_for_an_ordinary_user() -> None:
    if os.getuid() != 0:
        pytest.skip("root's nginx cannot be compared here")
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory() as directory:
        var_dir = Path(directory)
        layout = SiteLayout(var_dir, var_dir / "run")
        write(layout, files(configuration(var_dir), layout, user="nobody"))
        for path in (var_dir, *var_dir.rglob("*")):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        tested = subprocess.run(
            nginx_command(layout, "-t"),
            user=nobody.pw_uid,
            group=nobody.pw_gid,
            capture_output=True,
            text=True,
            check=False,
        )
    assert tested.returncode == 0, tested.stderr
    assert "[warn]" not in tested.stderr


def rendered(tmp_path: Path, version: tuple[int, int, int]) -> dict[str, str]:
    """The files of a cell for an nginx of ``version``."""
    return files(configuration(tmp_path), SiteLayout(tmp_path, tmp_path / "run"), version)


@pytest.mark.parametrize(("version", "times"), [((1, 22, 1), 0), ((1, 29, 6), 0), ((1, 29, 7), 2)])
def test_kept_upstream_connections_are_off_where_they_are_on_by_default(
    tmp_path: Path, version: tuple[int, int, int], times: int
) -> None:
    assert rendered(tmp_path, version)["conf.d/pool.conf"].count("keepalive 0;") == times


@pytest.mark.parametrize(("version", "times"), [((1, 27, 3), 0), ((1, 27, 4), 1)])
def test_reload_leaves_idle_clients_connected_where_nginx_can(
    tmp_path: Path, version: tuple[int, int, int], times: int
) -> None:
    assert (
        rendered(tmp_path, version)["conf.d/clients.conf"].count("keepalive_min_timeout 75s;")
        == times
    )
