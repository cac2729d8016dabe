"""Several models behind one nginx: whoever reads a request first hands it to its model's pool."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy.nginx.site import Site, site
from tests.deploy.processes import ask
from tests.ports import free_port
from worker.coordination.served_models import pool_of

TURBO, PHOTO = pool_of("turbo"), pool_of("photo")
MODELS = {
    "models": [{"name": "turbo"}, {"name": "photo"}],
    "workers": [
        {"device": "cpu", "model": "photo"},
        {"device": "cpu", "count": 2, "model": "turbo"},
    ],
}
EDITS = "/v1/images/edits"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """w1 draws with photo, w2 and w3 with turbo."""
    listen = {"port": free_port(), "auth": "none"}
    with site(tmp_path_factory.mktemp("two"), listen=listen, **MODELS) as two:  # type: ignore[arg-type]
        yield two


def test_request_is_drawn_by_a_worker_with_its_model_whoever_reads_it_first(two: Site) -> None:
    with two.worker("w1"), two.worker("w2"), two.worker("w3"):
        photos = [two.draw(pool=PHOTO).json() for _ in range(6)]
        turbos = [two.draw(pool=TURBO).json() for _ in range(6)]
    assert {each["worker"] for each in photos} == {"w1"}
    assert {each["worker"] for each in turbos} == {"w2", "w3"}
    assert photos[0]["asked"] == {"pool": PHOTO}
    assert photos[0]["headers"]["x-pool"] == PHOTO
    assert set(photos[0]["headers"]["x-pools"].split(",")) == {TURBO, PHOTO}


def test_answer_is_told_as_its_own_worker_tells_it(two: Site) -> None:
    with two.worker("w1"), two.worker("w2"):
        for direct in (True, False):
            reply = two.draw(pool=PHOTO, direct=direct)
            told = reply.json()["headers"]
            assert (reply.status_code, reply.headers["X-Worker"]) == (200, "w1")
            assert reply.headers["X-Queue-Ms"] == "12"
            line = two.log_of(told["x-request-id"])
            assert (line["worker"], line["status"]) == ("w1", 200)
            assert line["upstream_status"].split(" : ")[-1 if direct else 1].startswith("200")


def test_no_client_chooses_a_pool(two: Site) -> None:
    with two.worker("w1"), two.worker("w2"):
        said = {"X-Pool": PHOTO, "X-Pools": "none", "X-Deployment": "mine"}
        told = two.client.post("/v1/images/generations", json={}, headers=said).json()["headers"]
    assert not {"x-pool", "x-deployment"} & told.keys()
    assert set(told["x-pools"].split(",")) == {TURBO, PHOTO}


def test_deployment_of_an_azure_client_is_passed_on(two: Site) -> None:
    with two.worker("w1"):
        asked = "/openai/deployments/my%20model/images/generations?api-version=1"
        told = two.client.post(asked, json={}).json()["headers"]
    assert told["x-deployment"] == "my%20model"


def test_large_body_and_start_are_the_same_for_who_draws(two: Site) -> None:
    asked = {"pool": PHOTO, "filler": "ä" * 300_000}
    with two.worker("w1"), two.worker("w2"):
        told = two.client.post(EDITS, json=asked).json()
    assert told["asked"] == asked
    assert told["worker"] == "w1"


def test_stream_passes_through_as_it_comes(two: Site) -> None:
    asked = {"pool": PHOTO, "stream": True}
    with (
        two.worker("w1"),
        two.worker("w2"),
        two.client.stream("POST", "/v1/images/generations", json=asked) as stream,
    ):
        assert next(stream.iter_text()).startswith("event: one")


def test_dying_worker_costs_no_request_of_its_model(two: Site) -> None:
    with two.worker("w1"), two.worker("w2"), two.worker("w3"):
        replies = [two.draw(pool=TURBO, prompt="die w2") for _ in range(4)]
    assert {reply.json()["worker"] for reply in replies} == {"w3"}


def test_all_of_a_model_are_asked_again_where_they_hand_back(two: Site) -> None:
    with two.worker("w1"), two.worker("w2"):
        reply = two.draw(pool=TURBO, prompt="hand back", direct=True)
        assert (reply.status_code, reply.json()["worker"]) == (200, "w2")
        tries = two.log_of(reply.json()["headers"]["x-request-id"])["upstream_addr"]
    drawn = tries.split(" : ", 1)[1]
    assert "w1" not in re.findall(r"/(w\d)\.sock", drawn)


def test_model_without_a_worker_is_an_honest_503_and_the_other_draws(two: Site) -> None:
    with two.worker("w2"):
        refused = two.draw(pool=PHOTO)
        assert two.draw(pool=TURBO).json()["worker"] == "w2"
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
    assert 2 <= int(refused.headers["Retry-After"]) <= 5


def test_what_a_worker_of_the_model_says_of_its_queue_is_believed(two: Site) -> None:
    """Also where closed gates of its pool are asked after it."""
    with two.worker("w1"), two.worker("w2"):
        asked = {"pool": TURBO, "prompt": "fail any", "status": 503}
        replies = [two.draw(**asked) for _ in range(4)]
    assert {reply.text for reply in replies} == {"broken"}


def test_job_and_its_preview_are_handed_on_like_drawings(two: Site) -> None:
    with two.worker("w1"), two.worker("w2"):
        replies = [two.client.post("/v1/jobs", json={"pool": PHOTO}) for _ in range(4)]
    assert {reply.json()["worker"] for reply in replies} == {"w1"}


def test_request_of_which_all_are_dead_ends_without_a_loop(two: Site) -> None:
    replies: list[httpx.Response] = [two.draw(pool=PHOTO), two.draw()]
    assert {(r.status_code, r.json()["error"]["code"]) for r in replies} == {(503, "unavailable")}


def test_key_is_asked_for_once_before_the_body_and_the_request_handed_on(tmp_path: Path) -> None:
    listen = {"port": free_port(), "auth": "keys"}
    with (
        site(tmp_path, listen=listen, **MODELS) as keyed,  # type: ignore[arg-type]
        keyed.worker("w1"),
        keyed.worker("w2"),
    ):
        good, wrong = ({"Authorization": f"Bearer {key}"} for key in ("good", "wrong"))
        replies = [
            keyed.client.post(EDITS, json={"pool": PHOTO, "prompt": said}, headers=good)
            for said in ("a", "b", "hand back")
        ]
        refused = keyed.client.post(EDITS, json={"pool": PHOTO}, headers=wrong)
        asked = [ask(keyed.layout, name, "GET", "/fake/asked").json() for name in ("w1", "w2")]
    assert [reply.json()["worker"] for reply in replies] == ["w1", "w1", "w1"]
    assert refused.status_code == 401
    assert sum(map(len, asked)) == 4
