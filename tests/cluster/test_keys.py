"""Keys on a real cell: who gets in, how fast a change is everywhere, and attacks from outside."""

import http.client
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from tests.cluster.conftest import RunningCell
from tests.deploy.processes import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.xdist_group("keyed")]

BODY = {"prompt": "a", "size": "64x64"}
KNOWN_EVERYWHERE_S = 6.0  # two on a quiet machine


def make(cell: RunningCell, name: str, *options: str) -> str:
    done = cell.zimage("keys", "create", name, "--json", *options)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["key"])


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def on_each_worker(cell: RunningCell, token: str) -> set[int]:
    """What each worker says to ``token``, asked on its own socket."""
    found = set()
    for worker in cell.workers():
        transport = httpx.HTTPTransport(uds=str(cell.layout.socket(worker)))
        with httpx.Client(transport=transport, base_url="http://worker") as client:
            found.add(client.get("/v1/models", headers=bearer(token)).status_code)
    return found


def known_after_s(cell: RunningCell, token: str, status: int) -> float:
    """Seconds until every worker says ``status``; to a wrong key that is tried often, also 429."""
    said = {status, 429} if status == 401 else {status}
    began = time.monotonic()
    wait_until(lambda: on_each_worker(cell, token) <= said, f"{status}s")
    return time.monotonic() - began


def test_changes_reach_all_workers_in_time(keyed: RunningCell) -> None:
    token = make(keyed, "ada")
    took = [known_after_s(keyed, token, 200)]
    assert keyed.zimage("keys", "disable", "ada").returncode == 0
    took.append(known_after_s(keyed, token, 401))
    assert keyed.zimage("keys", "enable", "ada").returncode == 0
    took.append(known_after_s(keyed, token, 200))
    rotated = json.loads(keyed.zimage("keys", "rotate", "ada", "--json").stdout)["key"]
    took += [known_after_s(keyed, rotated, 200), known_after_s(keyed, token, 401)]
    assert keyed.zimage("keys", "delete", "ada").returncode == 0
    took.append(known_after_s(keyed, rotated, 401))
    assert max(took) < KNOWN_EVERYWHERE_S


def test_keys_work_through_nginx_and_after_a_kill(keyed: RunningCell) -> None:
    token = make(keyed, "bob")
    known_after_s(keyed, token, 200)
    with httpx.Client(base_url=keyed.url, timeout=60) as client:
        drawn = client.post("/v1/images/generations", json=BODY, headers=bearer(token))
        assert drawn.status_code == 200
        refused = client.post("/v1/images/generations", json=BODY)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert client.get("/").status_code == 200  # the page itself, to sign in on
        assert client.get("/readyz").status_code == 200
        url = client.post(
            "/v1/images/generations", json=BODY | {"response_format": "url"}, headers=bearer(token)
        ).json()["data"][0]["url"]
        assert client.get(url).status_code == 200  # signed: it needs no key
        # Through nginx, from another site's page.
        evil = {"Origin": "http://evil.example"}
        assert client.post("/v1/session", json={"key": token}, headers=evil).status_code == 403


def test_a_browser_signs_in_draws_and_out(keyed: RunningCell) -> None:
    token = make(keyed, "carol")
    known_after_s(keyed, token, 200)
    own = {"Origin": keyed.url}
    with httpx.Client(base_url=keyed.url, timeout=60) as client:
        assert client.post("/v1/session", json={"key": token}, headers=own).status_code == 204
        assert client.get("/v1/session").json()["key"]["name"] == "carol"
        assert client.post("/v1/images/generations", json=BODY, headers=own).status_code == 200
        assert client.post("/v1/images/generations", json=BODY).status_code == 403
        assert client.delete("/v1/session", headers=own).status_code == 204
        assert client.get("/v1/models").status_code == 401


def test_azures_sdk_draws(keyed: RunningCell) -> None:
    token, version = make(keyed, "azure"), "2025-04-01-preview"
    known_after_s(keyed, token, 200)
    with (
        openai.AzureOpenAI(
            azure_endpoint=keyed.url, api_key=token, api_version=version, max_retries=0
        ) as one,
        openai.AzureOpenAI(
            base_url=f"{keyed.url}/v1", api_key=token, api_version=version, max_retries=0
        ) as other,
    ):
        for client in (one, other):
            drawn = client.images.generate(model="gpt-image-1", prompt="a", size="256x256")
            assert drawn.data
            assert drawn.data[0].b64_json


@pytest.mark.parametrize("origin", ["null", "http://evil.example", "app://notes"])
def test_a_page_of_another_site_draws_with_a_key_and_never_with_a_cookie(
    keyed: RunningCell, origin: str
) -> None:
    token = make(keyed, f"carl-{len(origin)}")
    known_after_s(keyed, token, 200)
    own, foreign = {"Origin": keyed.url}, {"Origin": origin}
    draw = "/v1/images/generations"
    with httpx.Client(base_url=keyed.url, timeout=60) as page:
        for proof in (bearer(token), {"api-key": token}):
            assert page.post(draw, json=BODY, headers={**proof, **foreign}).status_code == 200
        assert page.post("/v1/session", json={"key": token}, headers=own).status_code == 204
        assert page.post(draw, json=BODY, headers=foreign).status_code == 403
        for shown in (bearer("wrong"), {"api-key": "wrong"}, {"Authorization": "Basic eDp5"}):
            sent = {**shown, **foreign}
            assert page.post(draw, json=BODY, headers=sent).status_code in (401, 429)
            assert page.delete("/v1/session", headers=sent).status_code == 403
            assert page.post("/v1/session", json={"key": token}, headers=sent).status_code == 403
        assert page.get("/v1/session").json()["signed_in"]


# What nginx and a worker might read differently: neither may lead past the key.
DISGUISES = [
    "/v1//models",
    "//v1/models",
    "/v1/v1/models",
    "//v1//v1/models",
    "/v1/v1/images/files/../../models",
    "/v1/v1/images/files/..%2f..%2fmodels",
    "//v1/session/../models",
    "/v1/v1/session%2f..%2fmodels",
    "/v1/v1/../v1/models",
    "/v1/v1/../../metrics",
    "/v1/v1/admin/drain",
    "//metrics",
    "//admin/drain",
    "/v1%2f%2fmodels",
    "/%2fv1/models",
    "/v1/./models",
    "/v1/images/files/../../models",
    "/v1/images/files/%2e%2e/%2e%2e/models",
    "/v1/session/../models",
    "/v1/session%2f..%2fmodels",
    "/readyz/../v1/models",
    "/readyz%2f..%2fv1/models",
    "/v1/models?/readyz",
    "/v1/models;/readyz",
    "/v1/models%00",
    "/V1/models",
    "/v1/models/",
    "/metrics",
    "/livez",
    "/admin/drain",
    "/v1/../admin/drain",
    "/v1/%2e%2e/metrics",
    "/readyz/../metrics",
]


@pytest.mark.parametrize("path", DISGUISES)
def test_no_spelling_of_an_address_leads_past_the_key(keyed: RunningCell, path: str) -> None:
    host, port = keyed.url.removeprefix("http://").split(":")
    for method in ("GET", "POST"):
        # Not httpx: it would tidy the path.
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        connection.putrequest(method, path)
        connection.putheader("Content-Length", "0")
        connection.endheaders()
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        assert answer.status in (400, 401, 403, 404, 405), content
        assert b'"id"' not in content
        assert b"zimage_" not in content


@pytest.mark.parametrize(
    "path", ["//v1/models", "/v1//models", "/v1/v1/models", "//v1//v1//models"]
)
def test_a_slash_or_a_v1_too_many_leads_to_the_route_with_a_key(
    keyed: RunningCell, path: str
) -> None:
    token = make(keyed, f"erin-{path.replace('/', '-')}")
    known_after_s(keyed, token, 200)
    assert httpx.get(keyed.url + path, headers=bearer(token)).json()["object"] == "list"


def test_a_wrong_key_takes_no_longer_than_another(keyed: RunningCell) -> None:
    token = make(keyed, "dave")
    known_after_s(keyed, token, 200)
    wrong = ["zimage_" + "A" * 43, token[:-8] + "A" * 8]
    times: dict[str, list[float]] = {each: [] for each in wrong}
    [worker, *_] = keyed.workers()
    transport = httpx.HTTPTransport(uds=str(keyed.layout.socket(worker)))
    with httpx.Client(transport=transport, base_url="http://worker") as client:
        for _ in range(100):
            for each in wrong:
                began = time.perf_counter()
                client.get("/v1/models", headers=bearer(each))
                times[each].append(time.perf_counter() - began)
    first, second = (statistics.median(each) for each in times.values())
    assert 0.5 < first / second < 2.0


def test_drawing_goes_on_without_the_database(keyed: RunningCell) -> None:
    token = make(keyed, "erin")
    known_after_s(keyed, token, 200)
    database = keyed.layout.database
    away = database.with_suffix(".away")
    database.rename(away)
    try:
        time.sleep(1.0)  # every worker has looked by now
        with httpx.Client(base_url=keyed.url, timeout=60) as client:
            codes = [
                client.post("/v1/images/generations", json=BODY, headers=bearer(token)).status_code
                for _ in range(6)
            ]
            assert codes == [200] * 6
            sign_in: Any = client.post("/v1/session", json={"key": token})
            assert sign_in.status_code == 503
            assert sign_in.json()["error"]["code"] == "store_unavailable"
    finally:
        away.rename(database)
    known_after_s(keyed, token, 200)


def test_up_says_when_no_key_is_good_and_when_the_secret_is_lost(keyed: RunningCell) -> None:
    secret = keyed.layout.key_secret
    kept = secret.read_bytes()
    secret.unlink()
    done = keyed.zimage("up", "--no-draw")
    secret.write_bytes(kept)
    assert done.returncode == 1
    assert "key-secret is lost" in done.stderr
    assert "The running cell is untouched." in done.stderr
    assert keyed.zimage("up", "--no-draw").returncode == 0


def test_page_of_operators_is_for_keys_of_that_role(keyed: RunningCell) -> None:
    user, ops = make(keyed, "una"), make(keyed, "otto", "--role", "ops")
    known_after_s(keyed, ops, 200)
    paths = ("/ops/", "/ops/ops.js", "/ops/cell.json", "/ops/history.json", "/ops/docs/runbook.md")
    usage = "/ops/usage?by=key"

    def seen(client: httpx.Client) -> list[int]:
        return [client.get(path).status_code for path in paths]

    with httpx.Client(base_url=keyed.url, timeout=30) as client:
        assert seen(client) == [302, 401, 401, 401, 401]
        assert client.get("/ops/").headers["Location"] == "/"
        assert client.get("/internal/ops").status_code == 404
        assert client.get("/admin/ops", headers=bearer(ops)).status_code == 404
        client.post("/v1/session", json={"key": user})
        assert seen(client) == [403] * 5
        assert client.get(usage).status_code == 403
        assert client.get("/ops/").json()["error"]["code"] == "forbidden"
    with httpx.Client(base_url=keyed.url, timeout=30) as client:
        client.post("/v1/session", json={"key": ops})
        assert seen(client) == [200] * 5
        assert client.get(usage).json()["by"] == "key"
        assert client.get("/ops/cell.json").json()["pool"] == {"open": 3, "of": 3}
        assert "script-src 'self'" in client.get("/ops/").headers["Content-Security-Policy"]
        assert keyed.zimage("keys", "disable", "otto").returncode == 0
        known_after_s(keyed, ops, 401)
        assert seen(client) == [302, 401, 401, 401, 401]
    # Without a worker to ask, the ops address is left.
    with httpx.Client(base_url=f"http://127.0.0.1:{keyed.ops_port}", timeout=30) as client:
        assert seen(client) == [200] * 5


def test_jobs_of_a_disabled_key_stop_and_go_on_with_it(keyed: RunningCell) -> None:
    token, ops = make(keyed, "leaky"), make(keyed, "olga", "--role", "ops")
    known_after_s(keyed, token, 200)
    known_after_s(keyed, ops, 200)
    with httpx.Client(base_url=keyed.url, timeout=30) as client:
        asked = {"prompts": ["a leaked picture"], "variants": 2000, "steps": 50, "size": "64x64"}
        job = client.post("/v1/jobs", json=asked, headers=bearer(token)).json()["id"]
    until_job(keyed, ops, job, lambda found: found["counts"]["done"] > 3)
    assert "jobs wait" in keyed.zimage("keys", "disable", "leaky").stdout
    stopped = until_job(keyed, ops, job, lambda found: not found["counts"]["running"])
    assert (stopped["state"], stopped["held"]) == ("running", "key_disabled")
    assert stopped["predicted_finish_at"] is None
    time.sleep(3.0)  # workers look for work every second
    assert shown(keyed, job)["counts"] == stopped["counts"]
    assert "key disabled" in keyed.zimage("jobs", "list").stdout
    assert keyed.zimage("keys", "enable", "leaky").returncode == 0
    until_job(
        keyed, ops, job, lambda found: found["counts"]["done"] > stopped["counts"]["done"] + 3
    )
    assert "jobs cancelled: 1" in keyed.zimage("keys", "delete", "leaky").stdout
    ended = until_job(keyed, ops, job, lambda found: not found["counts"]["running"])
    assert (ended["state"], ended["held"]) == ("cancelled", None)
    items = f"{keyed.url}/v1/jobs/{job}/items"
    answer = httpx.get(items, params={"state": "cancelled", "limit": 1}, headers=bearer(ops))
    said = answer.json()["data"][0]["error"]
    assert said == {"code": "key_deleted", "message": "The key leaky was deleted."}


def shown(cell: RunningCell, job: str) -> dict[str, Any]:
    """The job as operators see it."""
    found: dict[str, Any] = json.loads(cell.zimage("jobs", "show", job, "--json").stdout)
    return found


def until_job(
    cell: RunningCell, ops: str, job: str, true: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """The job, as soon as it is so for operators."""

    def seen() -> dict[str, Any] | None:
        answer = httpx.get(f"{cell.url}/v1/jobs/{job}", headers=bearer(ops), timeout=30)
        return next(filter(true, [answer.json()]), None) if answer.status_code == 200 else None

    return dict(wait_until(seen, "a job like that"))
