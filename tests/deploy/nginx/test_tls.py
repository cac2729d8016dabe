"""HTTPS on a real nginx: what connects, what does not, and a certificate that changes meanwhile."""

import functools
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from deploy.config import parse
from deploy.rendering import certificate
from deploy.rendering.certificate import check, install, read
from tests.deploy.nginx.site import Site, SiteLayout, configuration, files, site
from tests.deploy.processes import wait_until
from tests.deploy.rendering.test_certificate import write_pair
from tests.ports import free_port

HSTS = "Strict-Transport-Security"
WEAK = (
    *("AES128-SHA", "ECDHE-RSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA", "AES128-GCM-SHA256"),
    *("DHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA256", "AES256-SHA256"),
)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    var_dir = tmp_path_factory.mktemp("tls")
    (var_dir / "web").mkdir()
    (var_dir / "web" / "index.html").write_text("<title>Z</title>")
    tls = {"self_signed": True, "http_port": free_port(), "hsts_s": 31_536_000}
    with site(var_dir, tls=tls) as secure:
        yield secure


def trusting(site: Site) -> ssl.SSLContext:
    return certificate.trusting(site.layout)


def handshake(site: Site, context: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", site.config.listen.port), timeout=30)
    try:
        return context.wrap_socket(plain, server_hostname="localhost")
    except BaseException:
        plain.close()
        raise


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_modern_versions_connect_with_forward_secrecy(
    secure: Site, version: ssl.TLSVersion
) -> None:
    context = trusting(secure)
    context.minimum_version = context.maximum_version = version
    with handshake(secure, context) as connection:
        name, protocol, bits = connection.cipher() or ("", "", 0)
    assert protocol == version.name.replace("_", ".")
    assert bits >= 128
    assert name.startswith(("TLS_AES", "TLS_CHACHA20", "ECDHE-ECDSA"))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_do_not(secure: Site, version: ssl.TLSVersion) -> None:
    context = trusting(secure)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with pytest.raises(ssl.SSLError, match=r"protocol|handshake failure|internal error"):
        handshake(secure, context)


@pytest.mark.parametrize("cipher", WEAK)
def test_weak_ciphers_do_not(secure: Site, cipher: str) -> None:
    context = trusting(secure)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.set_ciphers(f"{cipher}:@SECLEVEL=0")
    except ssl.SSLError:
        pytest.skip(f"the client's own OpenSSL has no {cipher}")
    with pytest.raises(ssl.SSLError, match=r"handshake failure|HANDSHAKE_FAILURE"):
        handshake(secure, context)


def test_self_signed_certificate_is_good_for_who_trusts_it(secure: Site) -> None:
    context = ssl.create_default_context(cafile=str(secure.layout.certificate))
    for address in ("127.0.0.1", "localhost"):
        url = f"https://{address}:{secure.config.listen.port}/healthz"
        assert httpx.get(url, verify=context).status_code == 200
    with pytest.raises(httpx.ConnectError, match=r"self-signed|self signed"):
        httpx.get(f"https://127.0.0.1:{secure.config.listen.port}/healthz")


def test_drawing_over_http2(secure: Site) -> None:
    base_url = str(secure.client.base_url)
    with (
        secure.worker("w1"),
        httpx.Client(base_url=base_url, http2=True, verify=trusting(secure), timeout=60) as client,
    ):
        reply = client.post("/v1/images/generations", json={"bytes": 3_000_000})
        assert (reply.http_version, reply.status_code) == ("HTTP/2", 200)
        assert len(reply.json()["filler"]) == 3_000_000
        assert reply.json()["headers"]["x-forwarded-proto"] == "https"


def test_streams_come_through_http2_at_once(secure: Site) -> None:
    base_url = str(secure.client.base_url)
    with (
        secure.worker("w1"),
        httpx.Client(base_url=base_url, http2=True, verify=trusting(secure), timeout=30) as client,
        client.stream("POST", "/v1/images/generations", json={"stream": True}) as reply,
    ):
        # The worker sends one event and then nothing for ever: whoever waits for more fails.
        assert next(reply.iter_lines()) == "event: one"
        assert reply.http_version == "HTTP/2"


def test_plain_http_is_led_to_https(secure: Site) -> None:
    port = secure.config.listen.port
    for asked in (secure.config.tls.http_port, port):
        reply = httpx.get(f"http://127.0.0.1:{asked}/some/page?a=b%0d%0aX:y")
        assert reply.status_code == 308
        assert reply.headers["Location"] == f"https://127.0.0.1:{port}/some/page?a=b%0d%0aX:y"
        assert reply.headers["Cache-Control"] == "no-store"


def test_body_in_plain_http_is_refused_and_not_led_on(secure: Site) -> None:
    for port in (secure.config.tls.http_port, secure.config.listen.port):
        reply = httpx.post(f"http://127.0.0.1:{port}/v1/images/generations", json={})
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "https_required")


def test_request_without_a_host_is_not_led_anywhere(secure: Site) -> None:
    address = ("127.0.0.1", secure.config.tls.http_port)
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        head = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b" 400 " in head.splitlines()[0]
    assert b"Location" not in head


def test_certbot_is_answered_in_plain_http(secure: Site) -> None:
    folder = secure.layout.acme_dir / ".well-known" / "acme-challenge"
    folder.mkdir(parents=True)
    (folder / "token").write_text("proof")
    base = f"http://127.0.0.1:{secure.config.tls.http_port}/.well-known/acme-challenge"
    assert httpx.get(f"{base}/token").text == "proof"
    assert httpx.get(f"{base}/none").status_code == 404
    assert httpx.get(f"{base}/../../../tls/pair.pem").status_code == 308


def test_hsts_is_said_by_page_api_and_errors(secure: Site) -> None:
    with secure.worker("w1"):
        replies = [secure.client.get(path) for path in ("/", "/v1/models", "/none", "/healthz")]
    assert [reply.headers[HSTS] for reply in replies] == ["max-age=31536000"] * 4


def test_hsts_is_not_said_unasked(front: Site) -> None:
    assert HSTS not in front.client.get("/healthz").headers


def test_key_is_not_served(secure: Site) -> None:
    up = "/%2e%2e"
    for path in ("/tls/shown/pair.pem", "/pair.pem", f"{up}/pair.pem", f"/x{up}{up}/pair.pem"):
        assert secure.client.get(path).status_code in (400, 404)


def test_http2_is_switched_on_as_each_nginx_wants_it(tmp_path: Any) -> None:
    layout = SiteLayout(tmp_path, tmp_path / "run")
    config = configuration(tmp_path, tls={"self_signed": True})
    old, new = (files(config, layout, version) for version in ((1, 25, 0), (1, 25, 1)))
    assert "ssl http2;" in old["nginx.conf"]
    assert "http2 on;" not in old["conf.d/tls.conf"]
    assert "http2;" not in new["nginx.conf"]
    assert "http2 on;" in new["conf.d/tls.conf"]


class Askers:
    """Eight clients that ask all the time: four with a new connection each time, two that keep
    theirs, two over HTTP/2."""

    def __init__(self, url: httpx.URL, trust: ssl.SSLContext) -> None:
        self.url, self.trust = url, trust
        self.served: list[int] = []
        self.failures: list[str] = []
        self._over = threading.Event()
        kept = [functools.partial(self._stay, http2) for http2 in (False, True) * 2]
        self._threads = [threading.Thread(target=one) for one in [self._come_anew] * 4 + kept]

    def __enter__(self) -> "Askers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, verify=self.trust, timeout=60, **options)

    def until_served(self, count: int) -> None:
        goal = len(self.served) + count
        wait_until(lambda: len(self.served) >= goal or self.failures, f"{count} answers")

    def _ask(self, client: httpx.Client) -> None:
        try:
            reply = client.post("/v1/images/generations", json={"bytes": 10_000})
            assert reply.status_code == 200
            self.served.append(reply.status_code)
        except (httpx.HTTPError, AssertionError) as error:
            self.failures.append(repr(error))

    def _come_anew(self) -> None:
        while not self._over.is_set():
            with self.client() as fresh:
                self._ask(fresh)

    def _stay(self, http2: bool) -> None:
        with self.client(http2=http2) as kept:
            while not self._over.is_set():
                self._ask(kept)
                self._over.wait(0.02)  # idle for a moment: what a reload would end


def test_certificate_changes_forty_times_without_a_failure(secure: Site, tmp_path: Any) -> None:
    before = certificate.self_signed(secure.config, secure.layout)
    pairs = [check(read(parse({"tls": write_pair(tmp_path / n)}).tls)) for n in ("a", "b")]
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    askers = Askers(secure.client.base_url, anybody)
    draw = ("POST", "/v1/images/generations")
    silent = httpx.Timeout(60, read=3)
    shown = []
    with (
        secure.worker("w1"),
        secure.worker("w2"),
        askers.client(http2=True) as watcher,
        watcher.stream(*draw, json={"stream": True}, timeout=silent) as stream,
    ):
        lines = stream.iter_lines()
        assert next(lines) == "event: one"
        with askers:
            for pair in (*pairs * 20, before):
                assert install(pair, secure.layout)
                askers.until_served(20)
                with handshake(secure, anybody) as connection:
                    shown.append(connection.getpeercert(binary_form=True))
        with pytest.raises(httpx.ReadTimeout):  # still open: nothing more comes, and no end
            list(lines)
    assert askers.failures == []
    assert shown[:40] == shown[:2] * 20
    assert len(set(shown)) == 3
