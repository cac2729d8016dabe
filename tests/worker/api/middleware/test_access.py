"""Who is let in: every route, with every kind of wrong proof."""

import hashlib
import hmac
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from starlette.routing import Route

from loadtest.waiting import until_async as until
from tests.worker.conftest import migrated, ready, serving, settings_in
from tests.worker.databases import away
from tests.worker.loras import put_lora
from worker.accounts import tokens
from worker.accounts.keyring import KeyRing
from worker.api.cookies import COOKIE, SECURE_COOKIE
from worker.api.middleware.access import INTERNAL
from worker.app import ROUTES
from worker.engine import Ticket
from worker.engine.request import DrawRequest
from worker.engine.ticket import Finish
from worker.lifecycle import Lifecycle
from worker.storage import keys
from worker.storage.keys import Key
from worker.storage.secret import shared_secret

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("url")]

DRAW = "/v1/images/generations"
BODY = {"prompt": "a", "size": "64x64"}
SITE = {"Origin": "http://cell"}


@dataclass
class Keyed:
    """A worker that asks for keys, and a way to make some."""

    service: Lifecycle
    client: httpx.AsyncClient
    secret: bytes

    async def make(self, name: str = "ada", **limits: Any) -> tuple[Key, str]:
        key, token = keys.new_key(self.secret, name, **limits)
        await self.service.components.database.run(lambda c: keys.insert(c, key, self.secret))
        await self.service.components.keys.refresh()
        return key, token

    async def change(self, key: Key, **values: Any) -> None:
        await self.service.components.database.run(lambda c: keys.change(c, key.id, **values))
        await self.service.components.keys.refresh()

    async def draw(self, token: str | None = None, **headers: str) -> httpx.Response:
        proof = {} if token is None else {"Authorization": f"Bearer {token}"}
        return await self.client.post(DRAW, json=BODY, headers=proof | headers)

    async def sign_in(self, token: str, **headers: str) -> httpx.Response:
        return await self.client.post("/v1/session", json={"key": token}, headers=headers)

    async def cookie(self, token: str) -> str:
        """Of a new session, as a browser sends it."""
        answer = await self.sign_in(token)
        self.client.cookies.clear()
        return answer.headers["Set-Cookie"].partition(";")[0]

    async def with_cookie(
        self, cookie: str, method: str = "GET", path: str = "/v1/models", **headers: str
    ) -> httpx.Response:
        """What is answered to a browser that has ``cookie`` and nothing else."""
        self.client.cookies.clear()
        answer = await self.client.request(method, path, headers={"Cookie": cookie} | headers)
        self.client.cookies.clear()
        return answer


@pytest.fixture
async def keyed(home: Path) -> AsyncIterator[Keyed]:
    settings = migrated(settings_in(home, auth="keys", wrong_keys_per_minute=100_000))
    secret = shared_secret(home / "key-secret")
    async with serving(settings) as (service, client):
        await ready(service)
        yield Keyed(service, client, secret)


def closed_routes() -> list[tuple[str, str]]:
    routes = [route for route in ROUTES if isinstance(route, Route)]
    return [
        (method, route.path.replace("{name:path}", "x").replace("{id:path}", "x"))
        for route in routes
        for method in sorted(route.methods or ())
        if route.path not in INTERNAL | {"/v1/session"} and "/images/files/" not in route.path
    ]


def test_there_are_closed_routes() -> None:
    assert ("POST", DRAW) in closed_routes()
    assert ("GET", "/v1/models") in closed_routes()


async def test_no_route_answers_without_a_good_key(keyed: Keyed) -> None:
    _, good = await keyed.make()
    expired = (await keyed.make("old", expires_at=time.time() - 1))[1]
    disabled = (await keyed.make("off", disabled=True))[1]
    wrong = [None, "", "none", good[:-1], good + "a", good.upper(), expired, disabled, "é", "\x00"]
    proofs: list[list[tuple[bytes, bytes]]] = [
        [] if token is None else [(b"Authorization", f"Bearer {token}".encode())] for token in wrong
    ]
    for scheme in ("Basic", "Token", "Bearer" + good):
        proofs.append([(b"Authorization", f"{scheme} {good}".encode())])
    for method, path in [*closed_routes(), ("GET", "/v1/no-such-route")]:
        answers = [await keyed.client.request(method, path, headers=proof) for proof in proofs]
        assert {answer.status_code for answer in answers} == {401}, (method, path)
        if method != "HEAD":
            # Nothing tells an unknown key from one that was switched off.
            assert len({answer.content for answer in answers}) == 1, (method, path)
            assert answers[0].json()["error"]["code"] == "invalid_api_key", (method, path)
            assert answers[0].headers["WWW-Authenticate"] == "Bearer", (method, path)


FOREIGN = ["null", "http://evil.example", "app://obsidian.md", "chrome-extension://abc", "http://"]


async def test_a_key_in_a_header_is_good_from_any_page(keyed: Keyed) -> None:
    _, token = await keyed.make()
    proofs = {"Authorization": f"Bearer {token}"}, {"api-key": token}
    for proof, origin in itertools.product(proofs, FOREIGN):
        answer = await keyed.client.post(DRAW, json=BODY, headers={**proof, "Origin": origin})
        assert answer.status_code == 200, (proof, origin)


async def test_azures_header_is_as_good_as_bearer_and_no_better(keyed: Keyed) -> None:
    _, good = await keyed.make()
    _, off = await keyed.make("off", disabled=True)
    tried = {
        (200, "api-key", good),
        (401, "api-key", "wrong"),
        (401, "api-key", off),
        (401, "api-key", f"Bearer {good}"),
        (401, "x-api-key", good),
    }
    for status, name, token in tried:
        answer = await keyed.client.get("/v1/models", headers={name: token})
        assert answer.status_code == status, (name, token)


@pytest.mark.parametrize(
    ("authorization", "status"),
    [("Bearer wrong", 401), ("Basic dTpw", 200), ("Bearer", 200), ("Bearer ", 200), ("", 200)],
)
async def test_a_bearer_that_is_there_counts_before_azures_header(
    keyed: Keyed, authorization: str, status: int
) -> None:
    """A proxy in front may ask for a password of its own, which stands in Authorization."""
    _, good = await keyed.make()
    proof = {"api-key": good, "Authorization": authorization}
    assert (await keyed.client.get("/v1/models", headers=proof)).status_code == status


def changing_routes() -> list[tuple[str, str]]:
    return [(method, path) for method, path in closed_routes() if method not in ("GET", "HEAD")]


async def test_no_page_of_another_site_changes_anything_with_a_visitors_cookie(
    keyed: Keyed,
) -> None:
    _, token = await keyed.make()
    cookie = await keyed.cookie(token)
    origins = (*FOREIGN, "http://cell.evil.example", "http://cell:81", "http://cell@evil", "")
    for (method, path), origin in itertools.product(changing_routes(), origins):
        answer = await keyed.with_cookie(cookie, method, path, Origin=origin)
        told = answer.status_code, answer.json()["error"]["code"]
        assert told == (403, "forbidden"), (method, path, origin)


@pytest.mark.parametrize(
    "shown", [{"Authorization": "Bearer x"}, {"Authorization": "Basic eDp5"}, {"api-key": "x"}]
)
async def test_whoever_shows_anything_in_a_header_has_no_cookie(
    keyed: Keyed, shown: dict[str, str]
) -> None:
    """nginx lets by what has such a header, and a good cookie must not stand in for a bad key."""
    _, token = await keyed.make()
    cookie = await keyed.cookie(token)
    for origin in (*FOREIGN, SITE["Origin"]):
        headers = {**shown, "Origin": origin}
        assert (await keyed.with_cookie(cookie, "POST", DRAW, **headers)).status_code == 401
        assert (await keyed.with_cookie(cookie, **headers)).status_code == 401


async def test_the_key_in_the_header_draws_whosever_cookie_is_there(keyed: Keyed) -> None:
    _, of_ada = await keyed.make("ada")
    _, of_olga = await keyed.make("olga", role="ops")
    cookie = await keyed.cookie(of_olga)
    keyed.client.cookies.clear()
    answer = await keyed.draw(of_ada, Cookie=cookie, Origin="null")
    assert answer.status_code == 200
    assert {row["key"] for row in await used(keyed, of_olga, by="key")} == {"ada"}


@pytest.mark.parametrize(
    "shown", [{}, {"Authorization": "Bearer x"}, {"Authorization": "Basic eDp5"}, {"api-key": "x"}]
)
async def test_no_other_site_signs_in_or_out(keyed: Keyed, shown: dict[str, str]) -> None:
    for origin in FOREIGN:
        await neither_in_nor_out(keyed, {**shown, "Origin": origin})


async def neither_in_nor_out(keyed: Keyed, foreign: dict[str, str]) -> None:
    _, token = await keyed.make(foreign["Origin"])
    cookie = await keyed.cookie(token)
    signed_in = await keyed.sign_in(token, **foreign)
    assert (signed_in.status_code, "Set-Cookie" in signed_in.headers) == (403, False)
    out = await keyed.with_cookie(cookie, "DELETE", "/v1/session?everywhere=true", **foreign)
    assert (out.status_code, "Set-Cookie" in out.headers) == (403, False)
    assert (await keyed.with_cookie(cookie)).status_code == 200
    assert (await keyed.sign_in(token, **SITE)).status_code == 204


async def test_a_good_key_draws_and_is_named_in_the_log(
    keyed: Keyed, caplog: pytest.LogCaptureFixture
) -> None:
    _, token = await keyed.make("ada")
    with caplog.at_level("INFO"):
        assert (await keyed.draw(token)).status_code == 200
        assert (await keyed.draw("zimage_wrong")).status_code == 401
    good, wrong = [r.fields for r in caplog.records if r.message == "request"]  # type: ignore[attr-defined]
    assert (good["key"], good["status"]) == ("ada", 200)
    assert (wrong["denied"], wrong["status"]) == ("wrong key", 401)
    assert "zimage_wrong" not in str(caplog.records)
    assert token not in caplog.text


async def test_changes_of_a_key_count_without_a_restart(keyed: Keyed) -> None:
    key, token = await keyed.make()
    await keyed.change(key, disabled=True)
    assert (await keyed.draw(token)).status_code == 401
    await keyed.change(key, disabled=False)
    assert (await keyed.draw(token)).status_code == 200
    _, fresh = keys.new_key(keyed.secret, "ada")
    await keyed.change(key, hash=keys.hash_of(keyed.secret, fresh), version=2)
    assert (await keyed.draw(token)).status_code == 401
    assert (await keyed.draw(fresh)).status_code == 200
    await keyed.service.components.database.run(lambda c: keys.delete(c, key.id))
    await keyed.service.components.keys.refresh()
    assert (await keyed.draw(fresh)).status_code == 401


async def test_a_key_of_the_batch_draws_as_batch(
    keyed: Keyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, token = await keyed.make(priority="batch")
    seen: list[DrawRequest] = []
    submit = keyed.service.model.engine.submit

    def see(request: DrawRequest, finish: Finish) -> Ticket:
        seen.append(request)
        return submit(request, finish)

    monkeypatch.setattr(keyed.service.model.engine, "submit", see)
    assert (await keyed.draw(token)).status_code == 200
    assert [(r.priority.name, r.key.startswith("key_")) for r in seen] == [("BATCH", True)]


async def test_wrong_keys_of_one_address_are_limited_and_good_ones_pass(home: Path) -> None:
    settings = migrated(settings_in(home, auth="keys", wrong_keys_per_minute=3))
    shared_secret(home / "key-secret")
    async with serving(settings) as (service, client):
        await ready(service)
        keyed = Keyed(service, client, shared_secret(home / "key-secret"))
        _, token = await keyed.make()
        here = {"X-Real-IP": "10.0.0.1"}
        codes = [(await keyed.draw("wrong", **here)).status_code for _ in range(6)]
        last = await keyed.sign_in("wrong", **here)
        # One minute may end and the next begin in between.
        assert codes[:3] == [401] * 3
        assert 429 in [*codes, last.status_code]
        assert (await keyed.draw(token, **here)).status_code == 200
        assert (await keyed.draw("wrong", **{"X-Real-IP": "10.0.0.2"})).status_code == 401
        limited = next(a for a in [await keyed.draw("wrong", **here)] if a.status_code == 429)
        assert 1 <= int(limited.headers["Retry-After"]) <= 60
        assert limited.headers["X-Should-Retry"] == "false"


async def test_operators_are_told_apart_for_nginx(keyed: Keyed) -> None:
    _, user = await keyed.make("una")
    _, ops = await keyed.make("otto", role="ops")
    codes = [
        (await keyed.client.get("/admin/ops", headers={"Authorization": f"Bearer {t}"})).status_code
        for t in (user, ops)
    ]
    assert codes == [403, 204]


async def test_nginx_is_told_whether_a_key_is_good_before_it_takes_a_body(keyed: Keyed) -> None:
    _, good = await keyed.make("una")
    _, off = await keyed.make("off", disabled=True)
    for token, status in ((good, 204), (off, 401), ("wrong", 401)):
        proof = {"Authorization": f"Bearer {token}"}
        assert (await keyed.client.get("/admin/key", headers=proof)).status_code == status
    assert (await keyed.with_cookie(await keyed.cookie(good), "GET", "/admin/key")).is_success


# Signing in


async def test_signing_in_sets_a_cookie_that_draws(keyed: Keyed) -> None:
    _, token = await keyed.make("ada", images_per_day=7, concurrency=2)
    nobody = (await keyed.client.get("/v1/session")).json()
    assert nobody == {"auth": "keys", "signed_in": False, "key": None}
    answer = await keyed.sign_in(token)
    assert answer.status_code == 204
    cookie = answer.headers["Set-Cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=strict", "Path=/"))
    assert "Secure" not in cookie
    assert token not in cookie
    me = (await keyed.client.get("/v1/session")).json()
    assert me["signed_in"]
    assert (me["key"]["name"], me["key"]["images_per_day"], me["key"]["concurrency"]) == (
        "ada",
        7,
        2,
    )
    assert (await keyed.draw(**SITE)).status_code == 200
    assert (await keyed.client.get("/v1/models")).status_code == 200


async def test_under_https_the_cookie_stays_there(keyed: Keyed) -> None:
    _, token = await keyed.make()
    https = {"X-Forwarded-Proto": "https"}
    name, value = (await keyed.sign_in(token, **https)).headers["Set-Cookie"].split("=", 1)
    assert name == SECURE_COOKIE == "__Host-zimage_session"
    assert "Secure" in value
    assert "Path=/;" in value
    assert "Domain" not in value
    text = value.partition(";")[0]
    assert (await keyed.with_cookie(f"{SECURE_COOKIE}={text}", **https)).status_code == 200
    # A neighbouring host can set a cookie of any name but that one; nobody is signed in by it.
    assert (await keyed.with_cookie(f"{COOKIE}={text}", **https)).status_code == 401
    assert (await keyed.with_cookie(f"{SECURE_COOKIE}={text}")).status_code == 401


@pytest.mark.parametrize(
    ("scheme", "name"),
    [("http", "zimage_session_zimage"), ("https", "__Secure-zimage_session_zimage")],
)
async def test_below_a_path_the_cookie_is_that_paths_and_that_cells(
    keyed: Keyed, scheme: str, name: str
) -> None:
    _, token = await keyed.make()
    below = {"X-Forwarded-Proto": scheme, "X-Forwarded-Prefix": "/draw"}
    set_name, value = (await keyed.sign_in(token, **below)).headers["Set-Cookie"].split("=", 1)
    assert set_name == name
    assert "Path=/draw/;" in value
    text = value.partition(";")[0]
    assert (await keyed.with_cookie(f"{name}={text}", **below)).status_code == 200
    # Nor does the cookie of a cell at the root of the same host sign anybody in here.
    for other in (COOKIE, SECURE_COOKIE, f"{name}2"):
        assert (await keyed.with_cookie(f"{other}={text}", **below)).status_code == 401
    out = await keyed.with_cookie(f"{name}={text}", "DELETE", "/v1/session", **SITE, **below)
    gone = out.headers.get_list("Set-Cookie")
    assert [cookie.partition("=")[0] for cookie in gone] == [
        "zimage_session_zimage",
        "__Secure-zimage_session_zimage",
    ]
    assert all("Path=/draw/;" in cookie for cookie in gone)
    assert (await keyed.with_cookie(f"{name}={text}", **below)).status_code == 401


async def test_a_cookie_of_an_earlier_version_is_good_until_its_end(keyed: Keyed) -> None:
    key, _ = await keyed.make()
    told = f"{key.id}.{key.version}.{int(time.time()) + 60}"
    signature = hmac.new(keyed.secret, b"token " + told.encode(), hashlib.sha256).hexdigest()
    cookie = f"{COOKIE}={told}.{signature}"
    for proto in ("http", "https"):
        headers = {"X-Forwarded-Proto": proto}
        assert (await keyed.with_cookie(cookie, **headers)).status_code == 200
        asked = await keyed.with_cookie(cookie, "GET", "/v1/session", **headers)
        assert asked.json()["signed_in"]
        assert "Set-Cookie" not in asked.headers
    out = await keyed.with_cookie(cookie, "DELETE", "/v1/session", **SITE)
    assert out.status_code == 204
    assert (await keyed.with_cookie(cookie)).status_code == 401


async def test_signing_out_takes_the_cookie(keyed: Keyed) -> None:
    _, token = await keyed.make()
    await keyed.sign_in(token)
    answer = await keyed.client.delete("/v1/session", headers=SITE)
    assert answer.status_code == 204
    assert keyed.client.cookies.get(COOKIE) is None
    gone = answer.headers.get_list("Set-Cookie")
    assert [cookie.partition("=")[0] for cookie in gone] == [COOKIE, SECURE_COOKIE]
    assert "Secure" in gone[1]  # else a browser would not let go of it
    assert not (await keyed.client.get("/v1/session")).json()["signed_in"]
    assert (await keyed.draw(**SITE)).status_code == 401


async def test_signing_out_is_in_the_audit_log(
    keyed: Keyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, token = await keyed.make()
    noted: list[Any] = []
    cookies = [await keyed.cookie(token) for _ in range(2)]
    monkeypatch.setattr(
        keyed.service.components.audit,
        "note",
        lambda *args, **details: noted.append((*args[:2], details)),
    )
    for cookie, query in zip(cookies, ("", "?everywhere=true"), strict=True):
        await keyed.with_cookie(cookie, "DELETE", f"/v1/session{query}", **SITE)
    told = [("signed_out", key.id, {"everywhere": everywhere}) for everywhere in (False, True)]
    assert noted == told


async def test_signing_out_ends_the_session_and_no_other_whoever_kept_a_copy(keyed: Keyed) -> None:
    _, token = await keyed.make()
    copies = [await keyed.cookie(token) for _ in range(2)]
    assert (await keyed.with_cookie(copies[0], "DELETE", "/v1/session", **SITE)).status_code == 204
    codes = [(await keyed.with_cookie(cookie)).status_code for cookie in copies]
    assert codes == [401, 200]
    again = await keyed.with_cookie(copies[0], "DELETE", "/v1/session", **SITE)
    assert again.status_code == 204


async def test_signing_out_holds_for_renewed_copies(
    keyed: Keyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, token = await keyed.make()
    first, now = await keyed.cookie(token), time.time()
    later = now + keyed.service.settings.session_ttl_s * 0.6
    monkeypatch.setattr("worker.api.routes.session.time.time", lambda: later)
    renewed = (await keyed.with_cookie(first, "GET", "/v1/session")).headers["Set-Cookie"]
    assert renewed.partition(";")[0] != first
    await keyed.with_cookie(first, "DELETE", "/v1/session", **SITE)
    assert (await keyed.with_cookie(renewed.partition(";")[0])).status_code == 401


async def test_signing_out_everywhere_ends_all_sessions_of_that_key_alone(keyed: Keyed) -> None:
    _, token = await keyed.make()
    _, other = await keyed.make("bob")
    copies = [await keyed.cookie(token), await keyed.cookie(token), await keyed.cookie(other)]
    out = await keyed.with_cookie(copies[0], "DELETE", "/v1/session?everywhere=true", **SITE)
    assert out.status_code == 204
    codes = [(await keyed.with_cookie(cookie)).status_code for cookie in copies]
    assert codes == [401, 401, 200]
    assert (await keyed.draw(token)).status_code == 200
    assert (await keyed.with_cookie(await keyed.cookie(token))).status_code == 200


@pytest.mark.parametrize("query", ["everywhere=yes", "everywhere=", "anywhere=true"])
async def test_signing_out_is_not_guessed(keyed: Keyed, query: str) -> None:
    _, token = await keyed.make()
    cookie = await keyed.cookie(token)
    answer = await keyed.with_cookie(cookie, "DELETE", f"/v1/session?{query}", **SITE)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "everywhere")
    assert (await keyed.with_cookie(cookie)).status_code == 200


async def test_other_sites_sign_nobody_out(keyed: Keyed) -> None:
    _, token = await keyed.make()
    cookie = await keyed.cookie(token)
    for headers in ({}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        answer = await keyed.with_cookie(cookie, "DELETE", "/v1/session", **headers)
        assert answer.status_code == 403
    assert (await keyed.with_cookie(cookie)).status_code == 200


async def test_all_workers_know_who_signed_out_and_so_does_the_next_one(keyed: Keyed) -> None:
    _, token = await keyed.make()
    cookie = await keyed.cookie(token)
    settings = keyed.service.settings.model_copy(update={"name": "w2"})
    async with serving(settings) as (service, client):
        await ready(service)
        second = Keyed(service, client, keyed.secret)
        assert (await second.with_cookie(cookie)).status_code == 200
        await keyed.with_cookie(cookie, "DELETE", "/v1/session", **SITE)
        await service.components.keys.refresh()
        assert (await second.with_cookie(cookie)).status_code == 401
    async with serving(settings) as (service, client):
        await ready(service)
        restarted = Keyed(service, client, keyed.secret)
        assert (await restarted.with_cookie(cookie)).status_code == 401


async def test_signing_out_without_the_database_takes_the_cookie_and_says_what_is_left(
    keyed: Keyed, url: str
) -> None:
    _, token = await keyed.make()
    cookie = await keyed.cookie(token)
    with away(url):
        answer = await keyed.with_cookie(cookie, "DELETE", "/v1/session", **SITE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
    assert len(answer.headers.get_list("Set-Cookie")) == 2


async def test_a_session_has_an_end_however_often_it_is_renewed(
    keyed: Keyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, token = await keyed.make()
    settings, cookie, began = keyed.service.settings, await keyed.cookie(token), time.time()
    ends, step_s = settings.session_max_s, settings.session_ttl_s * 0.6
    for turn in range(1, int(ends / step_s) + 2):
        now = began + turn * step_s
        monkeypatch.setattr("worker.api.middleware.access.time.time", lambda now=now: now)
        answer = await keyed.with_cookie(cookie, "GET", "/v1/session")
        assert answer.json()["signed_in"] == (turn * step_s < ends)
        if "Set-Cookie" in answer.headers:
            cookie = answer.headers["Set-Cookie"].partition(";")[0]
    assert not answer.json()["signed_in"]


@pytest.mark.parametrize("change", [{"disabled": True}, {"version": 2}, {"expires_at": 1.0}])
async def test_what_ends_a_key_ends_its_sign_ins(keyed: Keyed, change: dict[str, Any]) -> None:
    key, token = await keyed.make()
    await keyed.sign_in(token)
    await keyed.change(key, **change)
    assert not (await keyed.client.get("/v1/session")).json()["signed_in"]
    assert (await keyed.draw(**SITE)).status_code == 401


async def test_a_changed_cookie_is_nobody(keyed: Keyed) -> None:
    key, token = await keyed.make()
    other, _ = await keyed.make("bob", role="ops")
    await keyed.sign_in(token)
    text = keyed.client.cookies[COOKIE]
    session = tokens.read_session(keyed.secret, text, time.time(), 1e9)
    assert session is not None
    forged = [
        text.replace(key.id, other.id),
        text.replace(f".{session.expires_at}.", f".{session.expires_at + 1}."),
        text[:-1] + ("0" if text[-1] != "0" else "1"),
        tokens.session_text(b"", replace(session, key_id=other.id)),
        tokens.session_text(keyed.secret, replace(session, expires_at=1)),
        tokens.session_text(keyed.secret, replace(session, key_id="key_gone")),
        "",
        '"' + text,
    ]
    for value in forged:
        keyed.client.cookies.clear()
        answer = await keyed.client.get("/v1/models", headers={"Cookie": f"{COOKIE}={value}"})
        assert answer.status_code == 401, value


async def test_a_session_is_renewed_after_half_its_life(keyed: Keyed) -> None:
    key, _ = await keyed.make()
    ttl_s = keyed.service.settings.session_ttl_s
    for left_s, renewed in ((ttl_s * 0.6, False), (ttl_s * 0.4, True)):
        now = int(time.time())
        session = tokens.Session(key.id, key.version, int(now + left_s), "a", started_at=now)
        cookie = f"other=1; {COOKIE}={tokens.session_text(keyed.secret, session)}"
        answer = await keyed.client.get("/v1/session", headers={"Cookie": cookie})
        assert answer.json()["signed_in"]
        assert ("Set-Cookie" in answer.headers) == renewed


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://cell.evil.example", "http://cell:81"]
)
async def test_other_sites_cannot_use_a_visitors_cookie(keyed: Keyed, origin: str | None) -> None:
    _, token = await keyed.make()
    await keyed.sign_in(token)
    headers = {} if origin is None else {"Origin": origin}
    for method, path in (("POST", DRAW), ("POST", "/v1/jobs"), ("DELETE", "/v1/images/x")):
        answer = await keyed.client.request(method, path, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")


async def test_the_browsers_own_word_is_enough_where_a_proxy_changed_host(keyed: Keyed) -> None:
    _, token = await keyed.make()
    cookie = await keyed.cookie(token)
    odd = {"Origin": "https://draw.example.com", "Sec-Fetch-Site": "same-origin"}
    answer = await keyed.with_cookie(cookie, "DELETE", "/v1/session", **odd)
    assert answer.status_code == 204
    odd["Sec-Fetch-Site"] = "same-site"
    cookie = await keyed.cookie(token)
    assert (await keyed.with_cookie(cookie, "DELETE", "/v1/session", **odd)).status_code == 403


async def test_a_sign_in_that_is_not_understood_names_the_field(keyed: Keyed) -> None:
    for body, param in (({"key": 1}, "key"), ({"keys": "a"}, "keys")):
        answer = await keyed.client.post("/v1/session", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert (await keyed.sign_in("")).status_code == 401


# Without keys


async def test_without_keys_everybody_draws(
    client: httpx.AsyncClient,
) -> None:
    assert (await client.post(DRAW, json=BODY)).status_code == 200
    session = (await client.get("/v1/session")).json()
    assert session == {"auth": "loopback", "signed_in": False, "key": None}
    refused = await client.post("/v1/session", json={"key": "a"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "key")


# Without the database


async def test_known_keys_go_on_without_the_database_and_nobody_signs_in(
    keyed: Keyed, url: str
) -> None:
    _, token = await keyed.make()
    with away(url):
        await keyed.service.components.keys.refresh()
        assert (await keyed.draw(token)).status_code == 200
        assert (await keyed.draw("wrong")).status_code == 401
        refused = await keyed.sign_in(token)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
    await keyed.service.components.keys.refresh()
    assert (await keyed.sign_in(token)).status_code == 204


async def test_known_keys_are_good_for_a_set_time_only(
    keyed: Keyed, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, token = await keyed.make()
    with away(url):
        monkeypatch.setattr(KeyRing, "age_s", keyed.service.settings.key_cache_s + 1)
        answer = await keyed.draw(token)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")


async def test_a_worker_without_the_secret_lets_nobody_in(home: Path) -> None:
    settings = migrated(settings_in(home, auth="keys"))
    async with serving(settings) as (service, client):
        await ready(service)
        answer = await client.post(DRAW, json=BODY, headers={"Authorization": "Bearer zimage_a"})
        assert answer.status_code == 503


async def test_another_secret_than_that_of_the_keys_is_noticed(keyed: Keyed, home: Path) -> None:
    _, token = await keyed.make()
    (home / "key-secret").write_bytes(b"x" * 32)
    await keyed.make("bob")
    assert (await keyed.draw(token)).status_code == 200  # as before it was lost
    assert (await keyed.sign_in(token)).status_code == 503


# Timing


async def test_no_key_is_told_from_another_by_time(keyed: Keyed) -> None:
    """A look-up takes the same whether nothing, the beginning or all but the end is right."""
    _, token = await keyed.make()
    for i in range(200):
        keyed.service.components.keys._by_hash[bytes([i]) * 32] = Key(f"k{i}", f"k{i}", b"", "")
    wrong = [
        "zimage_" + "A" * 43,
        token[:30] + "A" * 20,
        token[:-1] + ("A" if token[-1] != "A" else "B"),
    ]
    best = [min(_spent_ns(keyed, each) for _ in range(15)) for each in wrong]
    assert max(best) < 2 * min(best)


def _spent_ns(keyed: Keyed, token: str) -> int:
    began = time.process_time_ns()
    for _ in range(300):
        assert keyed.service.components.keys.holder(token) is None
    return time.process_time_ns() - began


# Limits and usage


async def used(keyed: Keyed, token: str, **query: str) -> list[dict[str, Any]]:
    await keyed.service.components.ledger.flush()
    proof = {"Authorization": f"Bearer {token}"}
    answer = await keyed.client.get("/v1/usage", params=query, headers=proof)
    assert answer.status_code == 200, answer.text
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


async def test_over_its_day_a_key_is_refused_with_the_numbers_before_anything_is_drawn(
    keyed: Keyed,
) -> None:
    _, token = await keyed.make(images_per_day=3)
    body = BODY | {"n": 2}
    proof = {"Authorization": f"Bearer {token}"}
    first = await keyed.client.post(DRAW, json=body, headers=proof)
    drawn = keyed.service.model.engine.state().totals["pictures_drawn"]
    second = await keyed.client.post(DRAW, json=body, headers=proof)
    assert (first.status_code, second.status_code) == (200, 429)
    assert keyed.service.model.engine.state().totals["pictures_drawn"] == drawn
    error = second.json()["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert "may draw 3 pictures a day (UTC) and has drawn 2" in error["message"]
    assert second.headers["X-Should-Retry"] == "false"
    assert (await keyed.draw(token)).status_code == 200
    await keyed.sign_in(token)
    assert (await keyed.client.get("/v1/session")).json()["key"]["images_today"] == 3
    [row] = await used(keyed, token)
    assert (row["requests"], row["images"], row["refusals"]) == (3, 3, 1)


async def test_a_stream_counts_and_holds_its_slot_until_its_end(keyed: Keyed) -> None:
    key, token = await keyed.make(images_per_day=9, concurrency=1)
    proof = {"Authorization": f"Bearer {token}"}
    body = BODY | {"stream": True, "n": 2}
    answer = await keyed.client.post(DRAW, json=body, headers=proof)
    assert answer.text.count("image_generation.completed") == 4  # event and type, twice
    assert (await keyed.draw(token)).status_code == 200  # the slot is free again
    assert await keyed.service.components.quotas.today(key) == 3
    [row] = await used(keyed, token)
    assert (row["requests"], row["images"]) == (2, 3)


async def test_too_many_at_a_time_wait_as_the_sdk_does(keyed: Keyed) -> None:
    key, token = await keyed.make(concurrency=1)
    held = await keyed.service.components.quotas.hold(key, "r", time.time(), 1)
    refused = await keyed.draw(token)
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "2")
    assert refused.headers["X-Should-Retry"] == "true"
    await held.release()
    assert (await keyed.draw(token)).status_code == 200


@pytest.mark.parametrize(("limit", "param"), [("max_pixels", "size"), ("max_steps", "steps")])
async def test_pictures_over_the_keys_limits_are_refused(
    keyed: Keyed, limit: str, param: str
) -> None:
    limits: dict[str, Any] = {limit: 1}
    _, token = await keyed.make("ada", **limits)
    refused = await keyed.draw(token)
    assert (refused.status_code, refused.json()["error"]["param"]) == (429, param)


async def test_a_key_may_use_and_see_its_own_adapters_alone(keyed: Keyed) -> None:
    folder = keyed.service.components.settings.lora_dir
    put_lora(folder, "ink")
    put_lora(folder, "wash")
    _, of_all = await keyed.make("ada")
    _, of_ink = await keyed.make("bob", loras="ink")
    _, of_none = await keyed.make("eve", loras="")
    unknown = []
    for token, names in ((of_all, ["ink", "wash"]), (of_ink, ["ink"]), (of_none, [])):
        proof = {"Authorization": f"Bearer {token}"}
        listed = (await keyed.client.get("/v1/loras", headers=proof)).json()["data"]
        assert [lora["name"] for lora in listed] == names
        for name in ("ink", "wash", "nowhere"):
            body = {"prompt": "a", "size": "64x64", "lora": [{"name": name}]}
            answer = await keyed.client.post(DRAW, json=body, headers=proof)
            assert answer.status_code == (200 if name in names else 400)
            if name not in names:
                unknown.append(answer.json()["error"]["message"].replace(name, "…"))
            made = await keyed.client.post(
                "/v1/jobs", json={"prompts": ["a"], "lora": [{"name": name}]}, headers=proof
            )
            assert made.status_code == (202 if name in names else 400)
    assert len(set(unknown)) == 1  # nobody can tell what is not there from what is another's


async def test_usage_is_ones_own_and_ops_see_all(keyed: Keyed) -> None:
    ada, of_ada = await keyed.make("ada")
    _, of_bob = await keyed.make("bob")
    _, of_ops = await keyed.make("olga", role="ops")
    for token in (of_ada, of_ada, of_bob):
        assert (await keyed.draw(token)).status_code == 200
    [mine] = await used(keyed, of_ada, by="key")
    assert (mine["key"], mine["key_id"], mine["images"]) == ("ada", ada.id, 2)
    assert mine["gpu_seconds"] > 0
    assert mine["megapixel_steps"] == pytest.approx(2 * 64 * 64 * 8 / 1e6, abs=1e-3)
    assert {row["key"]: row["images"] for row in await used(keyed, of_ops, by="key")} == {
        "ada": 2,
        "bob": 1,
    }
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert [row["images"] for row in await used(keyed, of_bob, since=today, by="model")] == [1]
    assert await used(keyed, of_bob, until="2020-01-01") == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"by": "size"}, "by"),
        ({"since": "today"}, "since"),
        ({"until": "2027-02-30"}, "until"),
        ({"a": "b"}, "a"),
    ],
)
async def test_usage_names_what_it_does_not_understand(
    keyed: Keyed, query: dict[str, str], param: str
) -> None:
    _, token = await keyed.make()
    proof = {"Authorization": f"Bearer {token}"}
    answer = await keyed.client.get("/v1/usage", params=query, headers=proof)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_without_keys_everybody_is_one(home: Path) -> None:
    async with serving(migrated(settings_in(home))) as (service, client):
        await ready(service)
        assert (await client.post(DRAW, json=BODY)).status_code == 200
        await service.components.ledger.flush()
        [row] = (await client.get("/v1/usage?by=key")).json()["data"]
        assert (row["key"], row["images"]) == ("everyone", 1)


async def test_a_request_that_fails_is_a_failure_and_gives_its_pictures_back(keyed: Keyed) -> None:
    key, token = await keyed.make(images_per_day=5)
    proof = {"Authorization": f"Bearer {token}"}
    body = BODY | {"prompt": "fault:error"}
    answer = await keyed.client.post(DRAW, json=body, headers=proof)
    assert answer.status_code == 500
    assert await keyed.service.components.quotas.today(key) == 0
    [row] = await used(keyed, token)
    assert (row["requests"], row["images"], row["failures"]) == (1, 0, 1)


# Other people's


async def test_what_belongs_to_one_key_does_not_exist_for_another(keyed: Keyed) -> None:
    tokens = {name: (await keyed.make(name))[1] for name in ("ada", "bob")}
    tokens["olga"] = (await keyed.make("olga", role="ops"))[1]
    proofs = {name: {"Authorization": f"Bearer {token}"} for name, token in tokens.items()}
    drawn = await keyed.draw(tokens["ada"])
    image = f"/v1/images/{drawn.headers['X-Request-ID']}-0"
    made = await keyed.client.post(
        "/v1/jobs", json={"prompts": ["a"], "size": "64x64"}, headers=proofs["ada"]
    )
    job = f"/v1/jobs/{made.json()['id']}"

    async def kept() -> bool:
        answer = await keyed.client.get(f"{image}/details", headers=proofs["ada"])
        return answer.status_code == 200

    await until(kept, 30, "kept in the gallery")
    for method, path in (
        ("GET", image),
        ("GET", f"{image}/details"),
        ("GET", f"{image}/thumbnail"),
        ("DELETE", image),
        ("GET", job),
        ("GET", f"{job}/items"),
        ("GET", f"{job}/events"),
        ("GET", f"{job}/results.zip"),
        ("POST", f"{job}/cancel"),
        ("DELETE", job),
    ):
        answer = await keyed.client.request(method, path, headers=proofs["bob"])
        assert answer.status_code == 404, (method, path)
    for route in ("/v1/images", "/v1/jobs"):
        lists = {
            name: (await keyed.client.get(route, headers=proof)).json()["data"]
            for name, proof in proofs.items()
        }
        assert not lists["bob"]
        assert lists["ada"]
        assert len(lists["olga"]) >= len(lists["ada"])
    for path in (f"{image}/details", job):
        for name in ("ada", "olga"):
            answer = await keyed.client.get(path, headers=proofs[name])
            assert answer.status_code == 200


async def test_a_job_draws_what_its_key_has_left_of_the_day(keyed: Keyed) -> None:
    key, token = await keyed.make("ada", images_per_day=2, concurrency=1)
    proof = {"Authorization": f"Bearer {token}"}
    body = {"prompts": ["a", "b", "c", "d"], "size": "64x64"}
    job = (await keyed.client.post("/v1/jobs", json=body, headers=proof)).json()["id"]

    async def counts() -> dict[str, int]:
        answer = await keyed.client.get(f"/v1/jobs/{job}", headers=proof)
        found: dict[str, int] = answer.json()["counts"]
        return found

    async def two_done() -> bool:
        return (await counts())["done"] == 2

    await until(two_done, 30, "two done")
    await anyio.sleep(1.5)  # another look of the runner
    found = await counts()
    assert (found["done"], found["failed"]) == (2, 0)
    assert await keyed.service.components.quotas.today(key) == 2
    assert (await keyed.draw(token)).status_code == 429
    [row] = await used(keyed, token)
    assert (row["requests"], row["images"], row["refusals"]) == (3, 2, 1)
    await keyed.change(key, images_per_day=None)
    await keyed.client.post(f"/v1/jobs/{job}/cancel", headers=proof)
