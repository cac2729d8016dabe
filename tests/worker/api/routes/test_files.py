import time
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest

from worker.storage.images import Signer
from worker.storage.secret import only, shared_secret

pytestmark = pytest.mark.anyio
NAME = f"2026-01-31/{'a' * 32}-0.webp"


def link(home: Path, name: str = NAME, expires_in_s: int = 60) -> str:
    expires = int(time.time()) + expires_in_s
    signature = Signer(only(shared_secret(home / "run" / "link-secret"))).sign(name, expires)
    query = urlencode({"expires": expires, "signature": signature})
    return f"/v1/images/files/{name}?{query}"


def put(home: Path) -> None:
    path = home / "images" / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(b"picture")


async def test_good_link_is_handed_to_nginx(client: httpx.AsyncClient, home: Path) -> None:
    put(home)
    answer = await client.get(link(home))
    assert answer.status_code == 200
    assert answer.headers["x-accel-redirect"] == f"/internal/images/{NAME}"
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["cache-control"].startswith("private, max-age=")


async def test_changed_link_is_refused(client: httpx.AsyncClient, home: Path) -> None:
    put(home)
    answer = await client.get(link(home).replace("-0.webp", "-1.webp"))
    assert answer.status_code == 403
    assert answer.json()["error"]["message"].startswith("This link is not one of ours")
    assert "x-accel-redirect" not in answer.headers


async def test_link_without_signature_is_refused(client: httpx.AsyncClient, home: Path) -> None:
    put(home)
    answer = await client.get(f"/v1/images/files/{NAME}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")


async def test_expired_link_is_refused(client: httpx.AsyncClient, home: Path) -> None:
    put(home)
    answer = await client.get(link(home, expires_in_s=-1))
    assert answer.status_code == 403
    assert answer.json()["error"]["message"].startswith("This link has expired")


async def test_deleted_picture_is_not_found(client: httpx.AsyncClient, home: Path) -> None:
    answer = await client.get(link(home))
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


async def test_signed_name_that_is_no_picture_is_not_found(
    client: httpx.AsyncClient, home: Path
) -> None:
    answer = await client.get(link(home, "2026-01-31/passwd"))
    assert answer.status_code == 404


async def test_links_lead_where_the_client_found_the_cell(client: httpx.AsyncClient) -> None:
    """Below a path of a host, by a proxy that tells it: nginx passes it on."""
    told = {"Host": "example.com", "X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/draw"}
    body = {"prompt": "a", "size": "64x64", "response_format": "url"}
    drawn = await client.post("/v1/images/generations", json=body, headers=told)
    assert drawn.json()["data"][0]["url"].startswith("https://example.com/draw/v1/images/files/")
