"""What somebody without a key may try from outside, on a real cell."""

import json
import os
import pwd
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cluster.conftest import RunningCell, started
from tests.deploy.processes import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

DRAW = "/v1/images/generations"
CLIMBING = (
    "/v1/images/files/../../../zimage.db",
    "/v1/images/files/..%2f..%2fzimage.db?expires=9999999999&signature=x",
    "/v1/images/%2e%2e%2fzimage.db",
    "/v1/images/..%252f..%252fzimage.db",
    "/v1/images/....//....//zimage.db",
    "/v1/images/img_..%2f..%2fzimage.db",
    "/internal/images/../zimage.db",
    "/internal/replies/../../zimage.db",
    "/errors/../internal/images/x",
    "/js/../../var/zimage.db",
    "/js/..%2f..%2fvar/zimage.db",
    "/..%2f..%2f..%2fetc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/js/%c0%ae%c0%ae/%c0%ae%c0%ae/etc/passwd",
    "/cell.json/../logs/access.log",
    "//etc/passwd",
    "/\\..\\..\\etc\\passwd",
    "/js/app.js%00.png",
    "/.git/config",
    "/js/.%2e/.env",
    "/v1/../metrics",
    "/v1/..%2fmetrics",
    "/v1/%2e%2e/admin/drain",
    "/v1/images/../../admin/drain",
)


@pytest.fixture(scope="module")
def cell() -> Iterator[RunningCell]:
    with started(model="synthetic:step_ms=1", workers=2) as running:
        yield running


@pytest.fixture(autouse=True)
def unharmed(cell: RunningCell) -> Iterator[None]:
    """Whatever was tried: no worker ended, and the next picture is drawn."""
    before = {name: cell.pid(name) for name in cell.workers()}
    yield
    answer = httpx.post(cell.url + DRAW, json={"prompt": "a fox", "size": "64x64"}, timeout=60)
    assert answer.status_code == 200
    assert {name: cell.pid(name) for name in cell.workers()} == before


def send(cell: RunningCell, request: bytes, *, ends: bool = False) -> tuple[int, bytes]:
    """Status and answer to these very bytes; 0: none came. ``ends``: and nothing more follows."""
    port = int(cell.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        reply = b"".join(iter(lambda: connection.recv(65536), b""))
    return (int(reply.split(b" ", 2)[1]) if reply else 0), reply


@pytest.mark.parametrize("path", CLIMBING)
def test_no_path_leads_out_of_its_folder(cell: RunningCell, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    status, reply = send(cell, request.encode("latin-1"))
    assert status in (400, 403, 404, 405), reply[:300]
    for secret in (b"SQLite format", b"root:", b'request_id":"', b"[core]", b"zimage_requests"):
        assert secret not in reply


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "Content-Length: -1\r\n\r\n",
        "Content-Length: +2\r\n\r\n{}",
        "X: a\x00b\r\n\r\n",
    ],
)
def test_no_request_hides_in_another(cell: RunningCell, lines: str) -> None:
    head = f"POST {DRAW} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    status, reply = send(cell, (head + lines).encode("latin-1"), ends=True)
    assert status in (400, 501), reply[:300]
    assert reply.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    ("body", "statuses"),
    [
        (b"[" * 500_000, {400}),
        (b'{"prompt":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, {400}),
        (b'{"prompt":"x","seed":' + b"9" * 500_000 + b"}", {400}),
        (b'{"prompt":"x","steps":1e999999}', {400}),
        (b'{"prompt":"x","guidance_scale":NaN}', {400}),
        (b"{" + b",".join(b'"k%d":1' % n for n in range(60_000)) + b"}", {400}),
        (b'{"prompt":"' + b"x" * 900_000 + b'"}', {400}),
        (b'{"prompt":"\\ud800"}', {400}),
        (b'{"prompt":"' + b"\xff\xfe" * 10 + b'"}', {400}),
        (b'{"prompt":"' + b"x" * 2_000_000 + b'"}', {413}),
        (b"\x1f\x8b" + bytes(5000), {400}),
        (b"", {400}),
    ],
    ids=lambda v: v[:16].decode("latin-1") if isinstance(v, bytes) else "",
)
def test_no_body_is_too_deep_or_too_large(
    cell: RunningCell, body: bytes, statuses: set[int]
) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(cell.url + DRAW, content=body, headers=headers, timeout=60)
    assert answer.status_code in statuses
    error = answer.json()["error"]
    assert len(error["message"]) < 1000
    assert "Traceback" not in answer.text


EVIL = 'x"}\r\nSet-Cookie: stolen=1\r\n\r\n{"at":"forged","level":"error"}\n\x1b[31m\u2028'


def test_no_prompt_reaches_a_header_or_forges_a_line(cell: RunningCell) -> None:
    agent = {"User-Agent": 'a" , "status": 200} \\'}
    body = {"prompt": EVIL, "size": "64x64", "user": EVIL, "seed": 4711}
    drawn = httpx.post(cell.url + DRAW, json=body, headers=agent, timeout=60)
    assert drawn.status_code == 200
    picture = f"{cell.url}/v1/images/{drawn.headers['X-Request-ID']}-0"
    for download in ("0", "1"):
        got = _until_kept(f"{picture}?download={download}")
        assert "Set-Cookie" not in got.headers
        assert re.fullmatch(r"[ -~]+", got.headers["Content-Disposition"])
    lines = [
        line
        for log in (cell.layout.access_log, *map(cell.layout.log, cell.workers()))
        for line in log.read_text().splitlines()
        if line.startswith("{")
    ]
    assert len(lines) > 3
    assert not [line for line in map(json.loads, lines) if line.get("at") == "forged"]
    audit = [
        json.loads(line)
        for path in (cell.layout.var_dir / "audit").iterdir()
        for line in path.read_text().splitlines()
    ]
    assert [line["prompt"] for line in audit if line.get("seed") == 4711] == [EVIL]


def _until_kept(url: str) -> httpx.Response:
    found: httpx.Response = wait_until(
        lambda: (got := httpx.get(url)).status_code == 200 and got, "kept"
    )
    return found


@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", [DRAW, "/v1/jobs", "/v1/jobs/x/cancel", "/v1/session"])
@pytest.mark.parametrize(
    "sent",
    [
        {"Content-Type": "text/plain", "Origin": "http://evil.example"},
        {"Content-Type": "text/plain", "Origin": "null", "Cookie": "zimage_session=x"},
        {"Content-Type": "application/json", "Origin": "null", "Authorization": "Bearer none"},
        {"Content-Type": "application/json", "Origin": "app://x", "api-key": "none"},
    ],
    ids=str,
)
def test_no_other_site_changes_anything(
    cell: RunningCell, path: str, method: str, sent: dict[str, str]
) -> None:
    """A form needs no leave of ours to be sent here; what it sends has its site's name on it."""
    answer = httpx.request(method, cell.url + path, content=b'{"prompt":"x"}', headers=sent)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site")
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_no_other_site_reads_anything(cell: RunningCell) -> None:
    asked = {"Origin": "http://evil.example"}
    for path in ("/v1/images", "/v1/models", "/cell.json", "/"):
        answer = httpx.get(cell.url + path, headers=asked)
        assert "Access-Control-Allow-Origin" not in answer.headers
    preflight = httpx.options(
        cell.url + DRAW, headers={**asked, "Access-Control-Request-Method": "POST"}
    )
    assert "Access-Control-Allow-Origin" not in preflight.headers


def test_no_other_user_of_the_machine_sees_state_or_sockets(cell: RunningCell) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can look with another user's eyes")
    nobody, var = pwd.getpwnam("nobody"), cell.layout.var_dir
    var.parent.chmod(0o755)  # the test's own folder
    try:
        for path in (var, cell.layout.run_dir, cell.layout.socket("w1"), cell.layout.database):
            looked = subprocess.run(
                ["cat" if path.is_file() else "ls", str(path)],
                user=nobody.pw_uid,
                group=nobody.pw_gid,
                extra_groups=[],
                cwd="/",
                capture_output=True,
                check=False,
            )
            assert b"Permission denied" in looked.stderr, path
    finally:
        var.parent.chmod(0o700)


def test_what_is_secret_is_for_one_user_whatever_the_folder(cell: RunningCell) -> None:
    """The second line: files are closed even where somebody opened the folder."""
    var = cell.layout.var_dir
    secret = [cell.layout.database, *(var / "audit").iterdir(), *cell.layout.logs_dir.iterdir()]
    # Not those that are being written: they have another name a moment later.
    secret += [path for path in cell.layout.images_dir.rglob("[!.]*") if path.is_file()]
    open_to_all = [p for p in secret if Path(p).stat().st_mode & 0o077]
    assert open_to_all == []
