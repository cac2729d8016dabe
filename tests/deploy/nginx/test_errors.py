"""Every error that nginx makes itself is JSON, whatever was sent."""

import contextlib
import http.client
import json
import re
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.deploy.nginx.site import Site, site
from worker.bounds import MAX_EDIT_BODY_BYTES, MAX_JOB_BODY_BYTES

TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(200)
MADE_BY_NGINX = (
    *(400, 401, 403, 404, 405, 411, 412, 413, 414, 415, 416, 421, 429),
    *(460, 461, 494, 495, 496, 497, 500, 501, 502, 503, 504, 505, 507),
)
SENT_AS = {460: 403, 461: 421, 494: 431, 495: 400, 496: 400, 497: 400, 502: 503}
SLOT = "".join(f"location = /make/{n} {{ return {n}; }}\n" for n in MADE_BY_NGINX)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An nginx that makes every error on request, and waits for workers for two seconds only."""
    var_dir = tmp_path_factory.mktemp("broken")
    (var_dir / "web").mkdir()
    (var_dir / "web" / "index.html").touch()
    with site(
        var_dir,
        SLOT,
        limits={"worker": {"max_queue_wait_s": 1.0}, "request": {"max_body_bytes": 2048}},
        timeouts={"longest_draw_s": 1.0},
    ) as broken:
        yield broken


def send(site: Site, request: bytes) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and error of the reply to these very bytes."""
    with socket.create_connection(("127.0.0.1", site.config.listen.port), timeout=30) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        reply = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = reply.decode().partition("\r\n\r\n")
    headers = dict(re.findall(r"^([\w-]+): (.*?)\r?$", head, re.M))
    return int(head.split()[1]), headers, json.loads(body)["error"]


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("/v1/images/generations", 2048),
        ("/v1/jobs/job_1", 2048),
        ("/v1/jobs", MAX_JOB_BODY_BYTES),
        ("/v1/jobs/preview?a=b", MAX_JOB_BODY_BYTES),
        ("/v1/images/edits", MAX_EDIT_BODY_BYTES),
        ("/v1/uploads", MAX_EDIT_BODY_BYTES),
        ("/v1/v1/images/variations", MAX_EDIT_BODY_BYTES),
    ],
)
def test_refused_body_is_told_the_limit_of_its_address(broken: Site, path: str, limit: int) -> None:
    port = broken.config.listen.port
    with contextlib.closing(http.client.HTTPConnection("localhost", port, timeout=30)) as client:
        client.putrequest("POST", path)
        client.putheader("Content-Length", str(limit + 1))
        client.endheaders()
        reply = client.getresponse()
        message = json.loads(reply.read())["error"]["message"]
    assert (reply.status, message) == (413, f"The body is over the limit of {limit} bytes.")


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        pytest.param(b"GARBAGE\r\n\r\n", 400, "bad_request", id="garbage"),
        pytest.param(
            b"GET /v1/images?search=\xe7\x8c\xab HTTP/1.1\r\nHost: localhost\r\n\r\n",
            400,
            "bad_request",
            id="raw letters",
        ),
        pytest.param(TLS_HELLO, 400, "bad_request", id="TLS on the plain port"),
        pytest.param(b"\x00\xff\xfe\r\n\r\n", 400, "bad_request", id="binary"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request", id="no host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "bad_request", id="bad host"),
        pytest.param(
            b"GET /%zz HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "bad_request", id="bad escape"
        ),
        pytest.param(
            b"GET /../.. HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "bad_request", id="above root"
        ),
        pytest.param(
            b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
            *(400, "bad_request"),
            id="bad length",
        ),
        pytest.param(
            b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            *(400, "bad_request"),
            id="bad chunk",
        ),
        pytest.param(
            b"GET /none HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            *(404, "not_found"),
            id="nothing there",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            *(405, "method_not_allowed"),
            id="POST to the page",
        ),
        pytest.param(
            b"TRACE / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            *(405, "method_not_allowed"),
            id="TRACE",
        ),
        pytest.param(
            b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Length: 2049\r\n\r\n" + b"x" * 2049,
            *(413, "request_too_large"),
            id="body too large",
        ),
        pytest.param(
            b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n900\r\n" + b"x" * 0x900 + b"\r\n0\r\n\r\n",
            *(413, "request_too_large"),
            id="chunked body too large",
        ),
        pytest.param(
            b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
            *(414, "uri_too_long"),
            id="long address",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
            *(431, "headers_too_large"),
            id="long header",
        ),
        pytest.param(
            b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
            *(501, "not_implemented"),
            id="unknown encoding",
        ),
        pytest.param(
            b"GET / HTTP/3.0\r\nHost: localhost\r\n\r\n",
            *(505, "http_version_not_supported"),
            id="HTTP/3.0",
        ),
        pytest.param(
            b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            *(503, "unavailable"),
            id="no worker",
        ),
    ],
)
def test_wrong_request_gets_a_json_error(
    broken: Site, request_bytes: bytes, status: int, code: str
) -> None:
    got, headers, error = send(broken, request_bytes)
    assert (got, error["code"]) == (status, code)
    assert headers["Content-Type"].startswith("application/json")


@pytest.mark.parametrize("status", MADE_BY_NGINX)
def test_every_status_has_the_envelope_and_the_request_id(broken: Site, status: int) -> None:
    reply = broken.client.get(f"/make/{status}")
    assert reply.status_code == SENT_AS.get(status, status)
    assert reply.json()["error"].keys() == {"message", "type", "param", "code"}
    assert broken.log_of(reply.headers["X-Request-ID"])["status"] == reply.status_code


@pytest.mark.parametrize("status", [429, 502, 503])
def test_refusals_say_when_to_come_back(broken: Site, status: int) -> None:
    assert 2 <= int(broken.client.get(f"/make/{status}").headers["Retry-After"]) <= 5


def test_too_large_body_learns_the_limit(broken: Site) -> None:
    reply = broken.draw(prompt="x" * 3000)
    assert "2048 bytes" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [({}, 503, "unavailable"), ({"Origin": "http://evil.example"}, 403, "cross_site")],
)
def test_large_body_of_a_job_is_refused_in_json_whatever_for(
    broken: Site, headers: dict[str, str], status: int, code: str
) -> None:
    """A job may be larger than what the addresses of errors would take by themselves."""
    reply = broken.client.post("/v1/jobs", content=b"x" * 1_500_000, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


def test_workers_that_never_answer_are_a_json_504(broken: Site) -> None:
    with broken.worker("w1") as worker:
        worker.send_signal(signal.SIGSTOP)
        reply = broken.draw()
        for name in ("w2", "w3"):
            assert not broken.gate(name).is_open
    assert reply.status_code in (503, 504)
    assert reply.json()["error"]["type"] == "server_error"


def test_ops_errors_are_json_too(broken: Site) -> None:
    broken.end_workers()
    reply = broken.ops.get("/workers/w1/metrics")
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "unavailable"
