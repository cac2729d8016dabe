"""The snippets of docs/proxies.md, run by the real proxies before a real cell.

nginx always; the others where PROVE is set, as `scripts/prove proxies` does, which installs them.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest

from deploy.config import ROOT, parse
from deploy.layout import Layout
from deploy.rendering import certificate
from loadtest.traffic import check_picture
from tests.cluster.conftest import SHARED, RunningCell
from tests.cluster.test_keys import bearer, known_after_s, make
from tests.deploy.processes import running, wait_until
from tests.ports import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.xdist_group("keyed")]

DOCS = (ROOT / "docs" / "proxies.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"^```(\w+)\n(.*?)^```$", DOCS, re.M | re.S))
BELOW = {
    name.lower().replace("caddy", "caddyfile"): (old, new)
    for name, old, new in re.findall(r"^\| (\w+) \| `([^`]+)` \| `([^`]+)` \|$", DOCS, re.M)
}
BINARIES = {
    "nginx": "nginx",
    "apache": "apache2",
    "haproxy": "haproxy",
    "caddyfile": "caddy",
    "lighttpd": "lighttpd",
}
"""By the language of their snippets."""
CLIENT = "127.0.0.9"
"""Where requests come from, so that the cell's log shows whether it knows them from the proxy."""

NGINX_FRAME = """
daemon off; pid {folder}/pid; error_log stderr; events {{}}
http {{
    access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    {snippet}
}}
"""
APACHE_FRAME = """
{modules}
ServerName localhost
Listen 127.0.0.1:{port}
PidFile {folder}/pid
DefaultRuntimeDir {folder}
Mutex file:{folder}
ErrorLog {folder}/error.log
{user}
{snippet}
"""
MODULES = ("mpm_event", "authz_core", "headers", "proxy", "proxy_http", "socache_shmcb", "ssl")
LIGHTTPD_FRAME = """
server.document-root = "{folder}"
server.bind = "127.0.0.1"
server.port = {port}
server.errorlog = "/dev/stderr"
{snippet}
"""
CADDY_FRAME = """
{{
    admin off
    auto_https disable_redirects
}}
{snippet}
"""


def binary_of(proxy: str) -> str:
    """Its program, or why it is not played here."""
    name = BINARIES[proxy]
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"])
    if proxy != "nginx" and not os.environ.get("PROVE"):
        pytest.skip("scripts/prove proxies runs it")
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"no {name} here: scripts/prove proxies installs it")
    return found


class Front:
    """A proxy at ``url``, whose certificate ``verify`` trusts."""

    def __init__(self, cell: RunningCell, folder: Path, port: int) -> None:
        self.cell, self.folder, self.port = cell, folder, port
        self.url = f"https://localhost:{port}"
        self.pem = folder / "draw.pem"
        self.verify = _certificate(folder, self.pem)
        self._cell_text = cell.config_path.read_text()

    def cell_is_told(self, *lines: str) -> None:
        """The cell's table [listen] has ``lines`` and no others of ours."""
        table = "\n".join(['auth = "keys"', *lines]).replace("{url}", self.url)
        text = self._cell_text.replace('auth = "keys"', table)
        if text != self.cell.config_path.read_text():
            self.cell.config_path.write_text(text)
            done = self.cell.zimage("up", "--no-draw")
            assert done.returncode == 0, done.stdout + done.stderr

    def _filled(self, snippet: str) -> str:
        """With ports and paths of this machine in place of the example's."""
        inner = f"127.0.0.1:{self.cell.url.rsplit(':', 1)[1]}"
        for old, new in (
            ("listen 443 ssl", f"listen 127.0.0.1:{self.port} ssl"),
            ("<VirtualHost *:443>", f"<VirtualHost 127.0.0.1:{self.port}>"),
            ("bind :443 ssl", f"bind 127.0.0.1:{self.port} ssl"),
            ("draw.example.com {", f"{self.url} {{\n    bind 127.0.0.1\n    tls {{pem}} {{pem}}"),
            ("draw.example.com", "localhost"),
            ("/etc/ssl/draw.pem", "{pem}"),
            ("{pem}", str(self.pem)),
            ('$SERVER["socket"] == ":443"', f'$SERVER["socket"] == "127.0.0.1:{self.port}"'),
            ('"10.1.0.7", "port" => 7860', '"127.0.0.1", "port" => ' + inner.rpartition(":")[2]),
            ("10.1.0.7:7860", inner),
        ):
            snippet = snippet.replace(old, new)
        return snippet

    @contextlib.contextmanager
    def runs(self, proxy: str, snippet: str) -> Iterator["Front"]:
        """``proxy`` with ``snippet`` in front of the cell."""
        binary, config = binary_of(proxy), self.folder / f"{proxy}.conf"
        config.write_text(self._framed(proxy, self._filled(snippet)))
        command = {
            "nginx": ["-c", str(config), "-e", "stderr"],
            "apache": ["-X", "-f", str(config)],
            "haproxy": ["-db", "-f", str(config)],
            "lighttpd": ["-D", "-f", str(config)],
            "caddyfile": ["run", "--adapter", "caddyfile", "--config", str(config)],
        }[proxy]
        log = self.folder / f"{proxy}.log"
        home = {"HOME": str(self.folder), "XDG_DATA_HOME": str(self.folder)}
        with running([binary, *command], log, home) as process, self.client() as client:
            wait_until(lambda: process.poll() is not None or _answers(client), "proxied")
            assert process.poll() is None, log.read_text()
            yield self

    def _framed(self, proxy: str, snippet: str) -> str:
        folder = self.folder
        if proxy == "nginx":
            user = "user root;\n" if os.getuid() == 0 else ""
            return user + NGINX_FRAME.format(folder=folder, snippet=snippet)
        if proxy == "apache":
            lines = [
                f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so"
                for name in MODULES
            ]
            user = "User www-data\nGroup www-data" if os.getuid() == 0 else ""
            return APACHE_FRAME.format(
                modules="\n".join(lines),
                port=self.port,
                folder=folder,
                user=user,
                snippet=snippet,
            )
        frame = {"caddyfile": CADDY_FRAME, "lighttpd": LIGHTTPD_FRAME}.get(proxy, "{snippet}")
        return frame.format(folder=folder, port=free_port(), snippet=snippet)

    def client(self, **options: Any) -> httpx.Client:
        transport = httpx.HTTPTransport(local_address=CLIENT, verify=self.verify)
        return httpx.Client(base_url=self.url, transport=transport, timeout=60, **options)


def _certificate(folder: Path, pem: Path) -> ssl.SSLContext:
    """A certificate for localhost as the kit makes its own."""
    config = parse({"tls": {"self_signed": True, "names": ["localhost"]}})
    pem.write_bytes(certificate.self_signed(config, Layout(folder, folder / "run")).pem)
    return ssl.create_default_context(cafile=str(pem))


def _answers(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        client.get("/")
        return True
    return False


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    """One port for all proxies, one after the other."""
    cell = SHARED.of(auth="keys", model="synthetic:step_ms=30")
    folder = Path(tempfile.mkdtemp(prefix="zp-", dir="/tmp"))
    front = Front(cell, folder, free_port())
    yield front
    front.cell_is_told()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def key(front: Front) -> str:
    made = make(front.cell, "through", "--role", "ops")
    known_after_s(front.cell, made, 200)
    return made


NAMED = 'trusted_proxies = ["127.0.0.1"]'
AT_ROOT, BELOW_PATH = 'public_url = "{url}"', 'public_url = "{url}/draw"'


def without(snippet: str, *lines: str) -> str:
    """As people write it who stop at what seems to work."""
    for line in lines:
        assert line in snippet
        snippet = re.sub(rf"^ *{re.escape(line)}.*\n", "", snippet, flags=re.M)
    return snippet


NGINX, APACHE = SNIPPETS["nginx"], SNIPPETS["apache"]
HOST_AND_PORT = NGINX.replace("Host $http_host", "Host $host:$server_port")
NO_HOST = without(APACHE, "ProxyPreserveHost On")


@pytest.mark.parametrize(
    ("proxy", "snippet"),
    [
        *(("nginx", NGINX), ("nginx", HOST_AND_PORT), ("apache", APACHE), ("apache", NO_HOST)),
        *((name, SNIPPETS[name]) for name in ("haproxy", "caddyfile", "lighttpd")),
    ],
    ids=[
        "nginx",
        "nginx-host-and-port",
        "apache",
        "apache-no-host",
        "haproxy",
        "caddy",
        "lighttpd",
    ],
)
def test_snippet_serves_all_that_the_cell_has(
    front: Front, key: str, proxy: str, snippet: str
) -> None:
    binary_of(proxy)
    front.cell_is_told(NAMED)
    with front.runs(proxy, snippet):
        serves(front, "", key)
        with front.client(headers=bearer(key)) as client:
            asked = client.get("/v1/models").headers["X-Request-ID"]
        assert logged(front.cell, asked)["client"] == CLIENT


BARE = without(NGINX, "proxy_http_version", "proxy_set_header")


@pytest.mark.parametrize(
    ("proxy", "snippet"),
    [("nginx", BARE), ("apache", without(NO_HOST, "RequestHeader"))],
    ids=["nginx", "apache"],
)
def test_bare_proxy_needs_the_address_in_the_file(
    front: Front, key: str, proxy: str, snippet: str
) -> None:
    binary_of(proxy)
    front.cell_is_told(AT_ROOT)
    with front.runs(proxy, snippet):
        serves(front, "", key)


def test_bare_proxy_that_nobody_told_of_still_signs_in(front: Front, key: str) -> None:
    front.cell_is_told()
    with front.runs("nginx", BARE):
        with front.client() as client:
            old = client.post("/v1/session", json={"key": key}, headers={"Origin": front.url})
            assert (old.status_code, old.json()["error"]["code"]) == (403, "cross_site")
            assert "listen.public_url" in old.json()["error"]["message"]
            browser = {"Origin": front.url, "Sec-Fetch-Site": "same-origin"}
            signed_in = client.post("/v1/session", json={"key": key}, headers=browser)
            assert signed_in.status_code == 204
        wait_until(lambda: "listen.public_url" in front.cell.zimage("doctor").stdout, "told")


@pytest.mark.parametrize("proxy", BINARIES)
def test_snippet_serves_a_cell_below_a_path(front: Front, key: str, proxy: str) -> None:
    binary_of(proxy)
    old, new = BELOW[proxy]
    snippet = SNIPPETS[proxy]
    assert old in snippet
    front.cell_is_told(NAMED, BELOW_PATH)
    with front.runs(proxy, snippet.replace(old, new)):
        serves(front, "/draw", key)


def test_nginx_may_take_the_path_away(front: Front, key: str) -> None:
    stripped = NGINX.replace("location / {", "location /draw/ {")
    stripped = stripped.replace("http://10.1.0.7:7860;", "http://10.1.0.7:7860/;")
    front.cell_is_told(NAMED, BELOW_PATH)
    with front.runs("nginx", stripped):
        serves(front, "/draw", key)


def test_sdk_gets_what_was_drawn_while_the_proxy_gave_up(front: Front, key: str) -> None:
    """The proxy waits for a second, the picture takes more; the SDK asks again by itself."""
    impatient = NGINX.replace("720s", "1s")
    front.cell_is_told(NAMED)
    with (
        front.runs("nginx", impatient),
        httpx2.Client(verify=front.verify) as http,
        openai.OpenAI(
            base_url=f"{front.url}/v1", api_key=key, http_client=http, max_retries=5
        ) as client,
    ):
        answer = client.images.with_raw_response.generate(
            prompt="patience", size="256x256", extra_body={"steps": 50}
        )
    assert answer.retries_taken > 0
    first = answer.headers["X-Replay-Of"]
    drawn = answer.parse().data
    assert drawn is not None
    body = {"prompt": "patience", "size": "256x256", "steps": 50}
    assert check_picture(drawn[0].model_dump(), body, synthetic=True) == ""
    assert wait_until(lambda: _fate(front.cell, f"{first}-0"), "told") == "drew"
    prompts = [line["prompt"] for line in _audit(front.cell) if "prompt" in line]
    assert prompts.count("patience") == 1


def test_both_languages_have_the_same_snippets() -> None:
    other = (ROOT / "docs" / "proxies.zh-CN.md").read_text(encoding="utf-8")
    code = re.compile(
        r"^```\w+\n.*?^```$|`(?:location|ProxyPass|use_backend|reverse_proxy)[^`]*`", re.M | re.S
    )
    assert code.findall(DOCS) == code.findall(other)
    patient = {"caddyfile", "lighttpd"}  # by default
    assert all("720" in SNIPPETS[name] for name in BINARIES.keys() - patient)


def serves(front: Front, root: str, key: str) -> None:
    """Page, sign-in, operators, API, links, streams, large answers and downloads."""
    with front.client() as client:
        _shows_the_page(client, root)
        _signs_in(client, front.url, root, key)
        _shows_operators(client, root)
    with front.client(headers=bearer(key)) as client:
        _draws(client, front.url, root)
        _streams(client, front.cell, root)


def _shows_the_page(client: httpx.Client, root: str) -> None:
    page = client.get(f"{root}/")
    assert "<title>" in page.text
    for path in re.findall(r'(?:src|href)="([^"#]+)"', page.text):
        if path != "ops/":
            assert client.get(f"{page.url}{path}").status_code == 200, path


def _signs_in(client: httpx.Client, url: str, root: str, key: str) -> None:
    own = {"Origin": url}
    client.headers["Accept"] = "*/*"
    signed_in = client.post(f"{root}/v1/session", json={"key": key}, headers=own)
    assert signed_in.status_code == 204, signed_in.text
    name = "__Secure-zimage_session_test" if root else "__Host-zimage_session"
    assert signed_in.headers["Set-Cookie"].startswith(f"{name}=")
    assert f"Path={root}/;" in signed_in.headers["Set-Cookie"]
    assert client.get(f"{root}/v1/session").json()["signed_in"]
    body = {"prompt": "signed in", "size": "64x64"}
    drawn = client.post(f"{root}/v1/images/generations", json=body, headers=own)
    assert drawn.status_code == 200, drawn.text


def _shows_operators(client: httpx.Client, root: str) -> None:
    assert client.get(f"{root}/ops", follow_redirects=True).url.path == f"{root}/ops/"
    assert client.get(f"{root}/ops/cell.json").json()["workers"]
    client.cookies.clear()
    assert client.get(f"{root}/ops/").headers["Location"].endswith(f"{root}/")


def _draws(client: httpx.Client, url: str, root: str) -> None:
    body: dict[str, Any] = {"prompt": "large", "size": "1024x1024"}
    drawn = client.post(f"{root}/v1/images/generations", json=body)
    assert check_picture(drawn.json()["data"][0], body, synthetic=True) == ""
    kept = f"{root}/v1/images/{drawn.headers['X-Request-ID']}-0"
    wait_until(lambda: client.get(kept).status_code == 200, "kept")
    saved = client.get(kept, params={"download": "1"})
    assert saved.headers["Content-Disposition"].startswith("attachment")
    assert saved.content == base64.b64decode(drawn.json()["data"][0]["b64_json"])
    assert client.get(f"{kept}/details").json()["url"] == kept
    servers = client.get(f"{root}/openapi.json").json().get("servers", [])
    assert servers == ([{"url": root}] if root else [])
    link = client.post(
        f"{root}/v1/images/generations", json={**body, "response_format": "url"}
    ).json()["data"][0]["url"]
    assert link.startswith(f"{url}{root}/v1/images/files/")
    assert client.get(link).headers["Content-Type"] == "image/png"


def _streams(client: httpx.Client, cell: RunningCell, root: str) -> None:
    """The first event is here long before the last: whoever leaves then leaves a drawing."""
    body = {"prompt": "left", "size": "64x64", "steps": 50, "stream": True}
    with client.stream("POST", f"{root}/v1/images/generations", json=body) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        first = next(stream.iter_raw())
        asked = stream.headers["X-Request-ID"]
    assert len(first) < 2048
    assert wait_until(lambda: _fate(cell, f"{asked}-0"), "told") == "left"


def _fate(cell: RunningCell, image: str) -> str:
    return next((line["event"] for line in _audit(cell) if line.get("image") == image), "")


def _audit(cell: RunningCell) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in cell.layout.audit_dir.iterdir()
        for line in path.read_text().splitlines()
    ]


def logged(cell: RunningCell, request_id: str) -> dict[str, Any]:
    """The access log's line."""

    def find() -> dict[str, Any] | None:
        lines = map(json.loads, cell.layout.access_log.read_text().splitlines())
        return next((line for line in lines if line["request_id"] == request_id), None)

    return dict(wait_until(find, "logged"))
