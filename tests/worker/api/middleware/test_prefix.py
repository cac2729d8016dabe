"""Addresses of the API with a slash or a v1 too many."""

import httpx
import pytest

from tests.worker.api.middleware.test_access import Keyed, keyed

__all__ = ["keyed"]

pytestmark = pytest.mark.anyio

ODD = ["//v1/", "/v1//", "/v1/v1/", "///v1///v1//", "/v1//v1/"]
"""httpx takes what begins with // for a host, so these follow one."""


@pytest.mark.parametrize("prefix", ODD)
async def test_the_route_is_reached(client: httpx.AsyncClient, prefix: str) -> None:
    drawn = await client.post(
        f"http://cell{prefix}images/generations", json={"prompt": "a", "size": "64x64"}
    )
    assert drawn.status_code == 200
    listed = (await client.get(f"http://cell{prefix}models")).json()
    assert listed == (await client.get("/v1/models")).json()


@pytest.mark.parametrize("prefix", ODD)
async def test_the_door_is_where_it_was(keyed: Keyed, prefix: str) -> None:
    _, token = await keyed.make()
    routes = [("POST", "images/generations"), ("GET", "models"), ("GET", "jobs"), ("GET", "x")]
    for method, path in routes:
        answer = await keyed.client.request(method, f"http://cell{prefix}{path}")
        assert answer.status_code == 401, path
    proof = {"Authorization": f"Bearer {token}"}
    assert (await keyed.client.get(f"http://cell{prefix}models", headers=proof)).is_success
    assert not (await keyed.client.get(f"http://cell{prefix}session")).json()["signed_in"]
    assert (await keyed.client.get(f"http://cell{prefix}images/files/x.png")).status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        *("//metrics", "//readyz", "//admin/drain", "/v1/readyz", "/v1/v1/admin/drain"),
        *(
            "/v1/v1/metrics",
            "//v1/../metrics",
            "/v1//../admin/drain",
            "/v1/session//",
            "/v2/v1/models",
        ),
        *("/v1/images//files/x", "/v1/v1/session/x", "/v1v1/models", "/xv1/v1/models"),
    ],
)
async def test_nothing_else_is_spelt_otherwise(keyed: Keyed, path: str) -> None:
    """An open address among closed ones, or the other way round, would be a way in."""
    url = httpx.URL("http://cell").copy_with(raw_path=path.encode())
    assert (await keyed.client.get(url)).status_code == 401


async def test_whoever_is_lost_is_told_the_base_url(client: httpx.AsyncClient) -> None:
    answer = await client.get("http://cell/v1/v1/chat/completions")
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == (
        "There is no /v1/chat/completions here: see the API's documentation. "
        "The base URL of clients is http://cell/v1."
    )
