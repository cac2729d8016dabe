"""Addresses as clients make them of a base URL, and what OpenAI's API has besides."""

import pytest

from tests.deploy.nginx.site import Site

DRAW = "/v1/images/generations"


@pytest.mark.parametrize("path", ["/v1/v1/models", "/v1//v1/models", "//v1/v1/v1/models"])
def test_v1_twice_is_v1_once(front: Site, path: str) -> None:
    with front.worker("w1"):
        reply = front.client.get(f"{front.client.base_url}".rstrip("/") + path)
    assert (reply.status_code, reply.text) == (200, "w1 /v1/models")


def test_a_drawing_under_v1_twice_is_a_drawing(front: Site) -> None:
    with front.worker("w1"):
        reply = front.client.post(f"/v1{DRAW}", json={"direct": True})
    assert reply.json()["headers"]["x-again"] == "1"  # nginx counts it among drawings


@pytest.mark.parametrize("root", ["/openai", "/v1", "/v1/v1"])
def test_azures_address_of_a_model_is_a_drawing(front: Site, root: str) -> None:
    path = f"{root}/deployments/dall-e-3/images/generations?api-version=2025-04-01-preview"
    with front.worker("w1"):
        reply = front.client.post(path, json={"direct": True})
        for other in ("images/files/x", "session", "x/images/generations", "../../v1/session"):
            lost = front.client.get(f"{root}/deployments/dall-e-3/{other}")
            assert lost.status_code == 404, other
    assert reply.json()["headers"]["x-again"] == "1"


@pytest.mark.parametrize("prefix", ["/v1", "/v1//v1", "/v1/deployments/dall-e-2"])
@pytest.mark.parametrize("verb", ["edits", "variations", "upscale"])
def test_pictures_of_some_mb_are_sent_again_where_a_worker_dies(
    front: Site, prefix: str, verb: str
) -> None:
    """As other drawings are, with what no other address takes."""
    if "deployments" in prefix and verb != "edits":
        pytest.skip("Azure has none")
    url = f"{front.client.base_url}".rstrip("/") + f"{prefix}/images/{verb}"
    large = "x" * (3 * front.config.limits.request.max_body_bytes)
    with front.worker("w1"), front.worker("w2"):
        for _ in range(2):
            reply = front.client.post(url, json={"prompt": "die w1", "picture": large})
            assert (reply.status_code, reply.json()["worker"]) == (200, "w2")
            assert len(reply.json()["asked"]["picture"]) == len(large)
            assert reply.json()["headers"]["x-again"] == "1"


def test_pictures_of_other_sites_pages_are_refused_before(front: Site) -> None:
    reply = front.client.post("/v1/images/edits", headers={"Origin": "http://evil.example"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "cross_site")


def test_nothing_is_there_without_v1_and_a_client_is_told(front: Site) -> None:
    reply = front.client.get("/images/generations")
    assert reply.status_code == 404
    assert reply.json()["error"]["message"].endswith("The base URL of clients ends in /v1.")
