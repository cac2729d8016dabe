"""What proxies in front make of a request, and that a cell sees the client's own all the same."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.nginx.site import Site, site
from tests.deploy.nginx.test_limits import DRAW, PROXY, STRANGER, client_at, drawn_for
from tests.ports import free_port

PAGE = "https://draw.example.com"
HOST, TOLD = "draw.example.com", "X-Forwarded-Host"


def behind(folder: Path, **listen: Any) -> Any:
    return site(folder, listen={"port": free_port(), "auth": "none", **listen})


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """It knows its proxy and nothing of its address."""
    with behind(tmp_path_factory.mktemp("named"), trusted_proxies=[PROXY]) as named:
        yield named


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """It knows its address and no proxy."""
    with behind(tmp_path_factory.mktemp("public"), public_url=PAGE) as public:
        yield public


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        ({}, "127.0.0.1:1"),
        ({"Host": HOST}, HOST),
        ({"Host": f"{HOST}:443"}, HOST),
        ({"Host": f"{HOST}:8443"}, f"{HOST}:8443"),
        ({TOLD: HOST}, HOST),
        ({TOLD: f"{HOST}, inner.lan:81"}, HOST),
        ({TOLD: f"{HOST}:8443,inner.lan"}, f"{HOST}:8443"),
        ({TOLD: HOST, "X-Forwarded-Port": "8443"}, f"{HOST}:8443"),
        ({TOLD: HOST, "X-Forwarded-Port": "8443, 80"}, f"{HOST}:8443"),
        ({TOLD: HOST, "X-Forwarded-Port": "443"}, HOST),
        ({TOLD: HOST, "X-Forwarded-Port": "80"}, HOST),
        ({TOLD: f"{HOST}:8443", "X-Forwarded-Port": "81"}, f"{HOST}:8443"),
        ({TOLD: HOST, "X-Forwarded-Port": "none"}, HOST),
        ({TOLD: "[::1]", "X-Forwarded-Port": "8443"}, "[::1]:8443"),
        ({TOLD: 'a" b'}, "127.0.0.1:1"),
        ({TOLD: ""}, "127.0.0.1:1"),
    ],
)
def test_host_is_the_one_that_the_client_used(named: Site, said: dict[str, str], seen: str) -> None:
    with named.worker("w1"):
        asked = {"Host": "127.0.0.1:1", **said}
        assert drawn_for(named.client, **asked)["host"] == seen
        with client_at(named, STRANGER) as stranger:
            unchanged = asked["Host"].removesuffix(":443")
            assert drawn_for(stranger, **asked)["host"] == unchanged


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        *(("https", "https"), ("HTTPS", "https"), ("https, http", "https")),
        *(("http,https", "http"), ("gopher", "http"), ("https-not", "http")),
    ],
)
def test_scheme_is_the_one_that_the_client_used(named: Site, said: str, seen: str) -> None:
    with named.worker("w1"):
        told = drawn_for(named.client, **{"X-Forwarded-Proto": said})
    assert told["x-forwarded-proto"] == seen


@pytest.mark.parametrize(
    "said",
    [
        {"Host": HOST},
        {"Host": f"{HOST}:443"},
        {TOLD: HOST},
        {TOLD: f"{HOST}, inner.lan"},
        {"Sec-Fetch-Site": "same-origin"},
    ],
)
def test_page_behind_a_named_proxy_is_no_other_site(named: Site, said: dict[str, str]) -> None:
    with named.worker("w1"):
        drawn_for(named.client, Origin=PAGE, **said)


@pytest.mark.parametrize("said", [{}, {TOLD: HOST}, {"Sec-Fetch-Site": "cross-site"}])
def test_refusal_names_the_proxy_and_the_settings(named: Site, said: dict[str, str]) -> None:
    with named.worker("w1"), client_at(named, STRANGER) as stranger:
        reply = stranger.post(DRAW, json={"direct": True}, headers={"Origin": PAGE, **said})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (403, "cross_site")
    assert {PAGE, STRANGER, "listen.trusted_proxies", "listen.public_url"} <= {
        word.strip(":,.") for word in error["message"].split()
    }


@pytest.mark.parametrize(
    "origin", ['http://"', "http://a'b", "null", "http://a b", "\\", "http://é"]
)
def test_refusal_of_an_odd_origin_is_json(named: Site, origin: str) -> None:
    with named.worker("w1"):
        odd = [(b"Origin", origin.encode()), (b"Host", b'x"y'), (b"X-Forwarded-Host", b'"')]
        reply = named.client.post(DRAW, json={}, headers=odd)
    assert reply.status_code in (400, 403)
    assert reply.json()["error"]["code"] in ("bad_request", "cross_site")


def test_log_tells_proxies_and_pages_that_are_not_named(named: Site) -> None:
    with named.worker("w1"), client_at(named, STRANGER) as stranger:
        refused = stranger.post(DRAW, json={}, headers={"Origin": PAGE, "Via": "1.1 squid"})
        passed = drawn_for(named.client, **{"X-Forwarded-For": "6.6.6.6"})
    line = named.log_of(refused.headers["X-Request-ID"])
    assert (line["unnamed_proxy"], line["refused_origin"]) == (STRANGER, PAGE)
    line = named.log_of(passed["x-request-id"])
    assert (line["unnamed_proxy"], line["refused_origin"]) == ("", "")


def test_stream_says_that_a_proxy_in_front_may_not_hold_it_back(named: Site) -> None:
    with named.worker("w1"), named.client.stream("POST", DRAW, json={"stream": True}) as stream:
        assert stream.headers["X-Accel-Buffering"] == "no"


def test_public_url_is_the_address_whatever_a_proxy_makes_of_host(public: Site) -> None:
    with public.worker("w1"):
        told = drawn_for(public.client, Origin=PAGE, Host="cell.internal:1")
    assert (told["host"], told["x-forwarded-proto"]) == (HOST, "https")


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://cell.internal:1", 200), ("http://127.0.0.1", 403), (f"{PAGE}.evil.example", 403)],
)
def test_page_of_a_public_cell_works_past_the_proxy_too(
    public: Site, origin: str, status: int
) -> None:
    with public.worker("w1"):
        said = {"Origin": origin, "Host": "cell.internal:1"}
        assert public.client.post(DRAW, json={"direct": True}, headers=said).status_code == status


def test_public_url_goes_for_named_proxies_alone_where_there_are_some(tmp_path: Path) -> None:
    with behind(tmp_path, public_url=PAGE, trusted_proxies=[PROXY]) as both, both.worker("w1"):
        told = drawn_for(both.client, **{"X-Forwarded-Host": "other.example", "Origin": PAGE})
        assert (told["host"], told["x-forwarded-proto"]) == (HOST, "https")
        with client_at(both, STRANGER) as stranger:
            straight = drawn_for(stranger, Host="10.0.0.5:7860", Origin="http://10.0.0.5:7860")
            assert (straight["host"], straight["x-forwarded-proto"]) == ("10.0.0.5:7860", "http")
            own = {"Origin": "http://127.0.0.1:7860", "Host": "127.0.0.1:7860"}
        refused = both.client.post(DRAW, json={}, headers=own)
        assert refused.status_code == 403


def test_loopback_cell_answers_to_its_public_name(tmp_path: Path) -> None:
    loopback = {"auth": "loopback", "public_url": PAGE, "trusted_proxies": [PROXY]}
    with behind(tmp_path, **loopback) as cell:
        assert cell.client.get("/healthz", headers={"Host": HOST}).status_code == 200
        assert cell.client.get("/healthz", headers={"Host": "evil.example"}).status_code == 421


@pytest.fixture(scope="module")
def below(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A cell that people find below a path of a host."""
    var_dir = tmp_path_factory.mktemp("below")
    for name, text in (("web/index.html", "<title>Z</title>"), ("images/pic.png", "a picture")):
        (var_dir / name).parent.mkdir(exist_ok=True)
        (var_dir / name).write_text(text)
    with behind(var_dir, public_url="https://example.com/a.b/draw/") as below:
        yield below


@pytest.mark.parametrize("path", ["", "/a.b/draw"])
def test_proxy_may_leave_the_path_or_take_it_away(below: Site, path: str) -> None:
    with below.worker("w1"):
        assert below.client.get(f"{path}/").text == "<title>Z</title>"
        assert below.client.get(f"{path}/healthz").json() == {"status": "ok"}
        picture = below.client.get(f"{path}/v1/images/files/pic.png?signature=x")
        drawn = below.client.post(path + DRAW, json={"direct": True}).json()
    assert picture.text == "a picture"
    assert drawn["headers"]["x-forwarded-prefix"] == "/a.b/draw"
    assert below.log_of(drawn["headers"]["x-request-id"])["path"] == DRAW


def test_path_without_its_slash_leads_to_the_page(below: Site) -> None:
    reply = below.client.get("/a.b/draw")
    assert (reply.status_code, reply.headers["Location"]) == (301, "/a.b/draw/")


@pytest.mark.parametrize(
    "path",
    [
        *("/internal/images/pic.png", "//internal/images/pic.png", "/./internal/images/pic.png"),
        *("/%69nternal/images/pic.png", "/x/../internal/images/pic.png", "/errors/503"),
        "/a.b/draw/internal/images/pic.png",
    ],
)
def test_path_opens_nothing_that_is_internal(below: Site, path: str) -> None:
    reply = below.client.send(
        httpx.Request("GET", below.client.base_url.copy_with(raw_path=f"/a.b/draw{path}".encode()))
    )
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")


def test_another_path_is_no_path_of_the_cell(below: Site) -> None:
    for path in ("/aXb/draw/healthz", "/a.b/draws/healthz", "/x/a.b/draw/healthz"):
        assert below.client.get(path).status_code == 404


def test_clients_cannot_say_where_the_cell_is(named: Site) -> None:
    with named.worker("w1"):
        told = drawn_for(named.client, **{"X-Forwarded-Prefix": "/evil"})
    assert "x-forwarded-prefix" not in told


def test_ops_page_leads_to_the_sign_in_below_the_path(tmp_path: Path) -> None:
    keyed = {"auth": "keys", "public_url": "https://example.com/draw"}
    with behind(tmp_path, **keyed) as cell:
        for path, leads in (("/ops", "/draw/ops/"), ("/draw/ops", "/draw/ops/")):
            assert cell.client.get(path).headers["Location"] == leads
