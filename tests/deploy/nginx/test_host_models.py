"""A front before two hosts that have other models: whoever reads a request first hands back what
only the other one can draw, and the front asks that one. Host a has turbo, host b has photo."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.certificates import Authority
from tests.deploy.nginx.cluster import Front, front
from tests.deploy.nginx.site import Site
from tests.deploy.nginx.test_hosts import client
from tests.deploy.processes import ask, wait_until
from tests.ports import free_port
from worker.coordination.served_models import pool_of

TURBO, PHOTO = pool_of("turbo"), pool_of("photo")
EDITS = "/v1/images/edits"
OF_PHOTO = {"model_of": PHOTO, "lacks": "w1"}
"""The worker w1 is of host a, w2 of host b."""


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Front]:
    listen, serves = {"auth": "none", "port": free_port()}, {"h1": (TURBO,), "h2": (PHOTO,)}
    with front(tmp_path_factory.mktemp("entry"), authority, serves, listen=listen) as here:
        yield here


@pytest.fixture
def platform(entry: Front, a: Site, b: Site) -> Iterator[Front]:
    with a.worker("w1"), b.worker("w2"), entry.link("h1", a), entry.link("h2", b):
        yield entry


def test_request_is_drawn_by_a_host_with_its_model_whoever_reads_it_first(platform: Front) -> None:
    replies = [platform.site.draw(**OF_PHOTO) for _ in range(12)]
    told = [reply.json() for reply in replies]
    assert {each["worker"] for each in told} == {"w2"}
    handed = [each for each in told if "x-front-pool" in each["headers"]]
    assert 0 < len(handed) < len(told)  # b draws at once what it has
    assert {each["headers"]["x-front-pool"] for each in handed} == {PHOTO}
    assert set(handed[0]["headers"]["x-front-pools"].split(",")) == {"any", TURBO, PHOTO}


def test_answer_is_told_as_its_own_host_tells_it(platform: Front) -> None:
    for _ in range(4):
        reply = platform.site.draw(**OF_PHOTO)
        assert (reply.status_code, reply.headers["X-Worker"]) == (200, "w2")
        assert not {"x-accel-redirect", "x-hand-over"} & reply.headers.keys()
        line = platform.site.log_of(reply.json()["headers"]["x-request-id"])
        assert (line["worker"], line["status"]) == ("w2", 200)


def test_large_body_id_and_start_are_the_same_for_who_draws(platform: Front) -> None:
    asked = {**OF_PHOTO, "filler": "ä" * 300_000}
    for _ in range(4):
        told = platform.site.client.post(EDITS, json=asked).json()
        line = platform.site.log_of(told["headers"]["x-request-id"])
        assert (told["worker"], told["asked"]) == ("w2", asked)
        assert float(told["headers"]["x-request-start"]) <= line["end"] - line["seconds"] + 0.1


def test_stream_and_jobs_are_handed_over_too(platform: Front) -> None:
    asked = {**OF_PHOTO, "stream": True}
    for _ in range(4):
        url = "/v1/images/generations"
        with platform.site.client.stream("POST", url, json=asked) as stream:
            assert next(stream.iter_text()).startswith("event: one")
    jobs = [platform.site.client.post("/v1/jobs", json=OF_PHOTO) for _ in range(4)]
    assert {reply.json()["worker"] for reply in jobs} == {"w2"}


FORGED = {"X-Front-Pools": PHOTO, "X-Front-Pool": PHOTO, "X-Deployment": "mine", "X-Pool": PHOTO}


def test_nobody_but_a_front_says_which_pools_there_are(
    platform: Front, a: Site, authority: Authority, tmp_path: Path
) -> None:
    told = platform.site.client.post("/v1/images/generations", json={}, headers=FORGED)
    seen = told.json()["headers"]
    assert set(seen["x-front-pools"].split(",")) == {"any", TURBO, PHOTO}
    assert not {"x-front-pool", "x-deployment"} & seen.keys()
    direct = a.client.post("/v1/images/generations", json={}, headers=FORGED).json()["headers"]
    assert not {"x-front-pools", "x-front-pool", "x-deployment"} & direct.keys()
    listen = {"auth": "none", "port": free_port()}
    with front(tmp_path, authority, listen=listen) as plain, plain.link("h1", a):
        told = plain.site.client.post("/v1/images/generations", json={}, headers=FORGED)
    seen = told.json()["headers"]
    assert seen["x-front-pools"] == "any"
    assert not {"x-front-pool", "x-deployment"} & seen.keys()


def test_host_asks_a_front_for_nothing_but_a_pool(platform: Front) -> None:
    asked = {"model_of": "/cell.json", "lacks": "w1,w2"}
    reply = platform.site.draw(**asked)
    assert (reply.status_code, reply.text) == (421, "forged")


def test_who_is_asked_in_the_pool_hands_nothing_on(platform: Front) -> None:
    """The model was taken away there a moment ago."""
    reply = platform.site.draw(model_of=PHOTO, lacks="w1,w2")
    assert (reply.status_code, reply.headers["Retry-After"]) == (503, "7")


@pytest.fixture
def plain(authority: Authority, a: Site, b: Site, tmp_path: Path) -> Iterator[Front]:
    """A front that has not learned yet what its hosts have, whose links were spare ones."""
    listen = {"auth": "none", "port": free_port()}
    with (
        a.worker("w1"),
        front(tmp_path, authority, listen=listen) as here,
        here.link("h3", a),
        here.link("h4", b),
        here.link("h5", a),  # as another host with the same
    ):
        here.lead_soonest_to("h3")
        yield here


def test_model_that_has_no_pool_yet_is_found_however_often_it_is_asked_for(
    plain: Front, b: Site
) -> None:
    with b.worker("w2"):
        replies = [plain.site.draw(**OF_PHOTO) for _ in range(60)]
        large = plain.site.client.post(EDITS, json={**OF_PHOTO, "filler": "ä" * 300_000})
        own = [plain.site.draw(prompt="x") for _ in range(4)]
    assert {reply.json()["worker"] for reply in (*replies, large)} == {"w2"}
    assert {reply.status_code for reply in own} == {200}


def test_model_that_has_no_pool_yet_and_whose_host_is_away_is_an_honest_503(plain: Front) -> None:
    replies = [plain.site.draw(**OF_PHOTO) for _ in range(4)]
    assert {(r.status_code, r.json()["error"]["code"]) for r in replies} == {(503, "unavailable")}
    assert all(2 <= int(reply.headers["Retry-After"]) <= 5 for reply in replies)


def test_who_has_the_model_says_how_long_it_takes_where_it_is_full(
    platform: Front, b: Site
) -> None:
    """And not the other one, which may have room first."""
    ask(b.layout, "w2", "POST", "/fake/ready?no")
    platform.gates("h2")[0].close()
    platform.lead_soonest_to("h1")
    replies = [platform.site.draw(**OF_PHOTO) for _ in range(4)]
    assert {(r.status_code, r.headers["Retry-After"]) for r in replies} == {(503, "7")}
    assert {r.json()["error"]["message"] for r in replies} == {"not ready"}


def test_model_whose_host_is_away_is_an_honest_503_and_the_other_draws(
    entry: Front, a: Site
) -> None:
    with a.worker("w1"), entry.link("h1", a):
        refused: httpx.Response = entry.site.draw(**OF_PHOTO)
        assert entry.site.draw().json()["worker"] == "w1"
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
    assert 2 <= int(refused.headers["Retry-After"]) <= 5


def test_host_that_has_just_joined_draws_where_those_of_the_pool_are_away(
    entry: Front, a: Site, b: Site
) -> None:
    with a.worker("w1"), b.worker("w2"), entry.link("h1", a), entry.link("h5", b):
        # A spare link whose gate was closed a moment ago is tried once a second.
        wait_until(lambda: entry.site.draw(**OF_PHOTO).status_code == 200, "drawn")
        replies = [entry.site.draw(**OF_PHOTO) for _ in range(8)]
        jobs = [entry.site.client.post("/v1/jobs", json=OF_PHOTO) for _ in range(4)]
    assert {reply.json()["worker"] for reply in (*replies, *jobs)} == {"w2"}


def test_dying_worker_of_the_model_costs_no_request(platform: Front, a: Site, b: Site) -> None:
    with b.worker("w3"):
        replies = [platform.site.draw(**OF_PHOTO, prompt="die w2") for _ in range(4)]
    assert {reply.json()["worker"] for reply in replies} == {"w3"}


def test_deployment_of_an_azure_client_reaches_the_host(platform: Front, a: Site) -> None:
    asked = "/openai/deployments/my%20model/images/generations?api-version=1"
    told: dict[str, Any] = platform.site.client.post(asked, json={}).json()
    assert told["headers"]["x-deployment"] == "my%20model"
    with client(a, platform.site, "front") as as_front:
        said = {"X-Deployment": "mine"}
        told = as_front.post("/v1/images/generations", json={}, headers=said).json()
    assert told["headers"]["x-deployment"] == "mine"
