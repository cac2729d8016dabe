"""Which pages may ask what of a cell with keys, and what browsers are told of it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy.nginx.site import Site, site
from tests.ports import free_port

DRAW = "/v1/images/generations"
CHAT, NOTES = "https://chat.example", "app://notes.md"
FOREIGN = ["null", "http://evil.example", CHAT]
SHOWN = [{"Authorization": "Bearer x"}, {"api-key": "x"}]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    listen = {
        "port": free_port(),
        "auth": "keys",
        "allowed_origins": [CHAT, NOTES, "https://Chat.Example"],
    }
    with site(tmp_path_factory.mktemp("keyed"), listen=listen) as keyed:
        yield keyed


def preflight(cell: Site, origin: str, path: str = DRAW) -> httpx.Response:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-stainless-os",
    }
    return cell.client.options(path, headers=asked)


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize("shown", SHOWN)
def test_who_shows_a_key_reaches_a_worker_from_any_page(
    keyed: Site, origin: str, shown: dict[str, str]
) -> None:
    with keyed.worker("w1"):
        reply = keyed.client.post(DRAW, json={"direct": True}, headers={**shown, "Origin": origin})
    assert reply.status_code == 200
    [name] = shown
    assert reply.json()["headers"][name.lower()] == shown[name]


@pytest.mark.parametrize("origin", [*FOREIGN, NOTES])
@pytest.mark.parametrize("shown", [{}, {"Authorization": ""}, {"api-key": ""}, {"api_key": "x"}])
def test_who_shows_none_does_not(keyed: Site, origin: str, shown: dict[str, str]) -> None:
    headers = {**shown, "Origin": origin, "Cookie": "zimage_session=good"}
    with keyed.worker("w1"):
        reply = keyed.client.post(DRAW, json={"direct": True}, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "cross_site")


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("origin", FOREIGN)
def test_without_keys_nothing_in_a_header_opens_the_cell_to_other_pages(
    front: Site, origin: str, shown: dict[str, str]
) -> None:
    with front.worker("w1"):
        reply = front.client.post(DRAW, json={"direct": True}, headers={**shown, "Origin": origin})
        asked = preflight(front, origin)
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "cross_site")
    assert not [name for name in asked.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", [DRAW, "/v1/models", "/v1/jobs", "/v1/images", "/v1/images/x"])
@pytest.mark.parametrize("origin", [CHAT, NOTES])
def test_a_page_that_is_allowed_is_told_so_before_it_asks(
    keyed: Site, path: str, origin: str
) -> None:
    """No worker is asked: a preflight has no key."""
    reply = preflight(keyed, origin, path)
    assert (reply.status_code, reply.content) == (204, b"")
    told = reply.headers
    assert told.get_list("Access-Control-Allow-Origin") == [origin]
    assert told["Access-Control-Allow-Headers"] == "authorization,x-stainless-os"
    assert {"POST", "DELETE"} <= set(told["Access-Control-Allow-Methods"].split(", "))
    assert "Access-Control-Allow-Credentials" not in told  # no cookie is ever theirs
    assert told["Vary"] == "Origin"


@pytest.mark.parametrize("origin", ["null", "http://evil.example", CHAT + ".evil", CHAT + ":81"])
def test_a_page_that_is_not_allowed_is_told_nothing(keyed: Site, origin: str) -> None:
    with keyed.worker("w1"):
        replies = [
            preflight(keyed, origin),
            keyed.client.post(DRAW, json={}, headers={"Origin": origin, "api-key": "x"}),
            keyed.client.get("/v1/models", headers={"Origin": origin}),
        ]
    for reply in replies:
        assert not [name for name in reply.headers if name.startswith("access-control")]
    assert replies[0].status_code == 405  # of the fake worker


def test_an_allowed_page_reads_answers_and_errors_whoever_makes_them(keyed: Site) -> None:
    from_chat = {"Origin": CHAT, "Authorization": "Bearer x"}
    with keyed.worker("w1"):
        drawn = keyed.client.post(DRAW, json={"bytes": 100_000}, headers=from_chat)  # out of a file
        large = keyed.client.post(DRAW, content=b"x" * 2_000_000, headers=from_chat)
    nobody = keyed.client.post(DRAW, json={}, headers=from_chat)
    assert [reply.status_code for reply in (drawn, large, nobody)] == [200, 413, 503]
    for reply in (drawn, large, nobody):
        assert reply.headers.get_list("Access-Control-Allow-Origin") == [CHAT]
        assert "Retry-After" in reply.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize("path", ["/", "/cell.json", "/healthz", "/readyz", "/internal/preflight"])
def test_an_allowed_page_reads_nothing_but_the_api(keyed: Site, path: str) -> None:
    with keyed.worker("w1"):
        for reply in (
            keyed.client.get(path, headers={"Origin": CHAT}),
            preflight(keyed, CHAT, path),
        ):
            assert "Access-Control-Allow-Origin" not in reply.headers


def test_every_page_may_be_allowed(tmp_path: Path) -> None:
    listen = {"port": free_port(), "auth": "keys", "allowed_origins": ["*"]}
    with site(tmp_path, listen=listen) as keyed:
        told = preflight(keyed, "null")
        assert (told.status_code, told.headers["Access-Control-Allow-Origin"]) == (204, "*")
        assert "Access-Control-Allow-Origin" not in keyed.client.get("/v1/models").headers
