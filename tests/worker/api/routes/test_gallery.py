"""The gallery through the API, in one process."""

import io
import time
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from PIL import Image

from tests.worker.conftest import migrated, ready, serving, settings_in
from tests.worker.databases import away
from worker.api.caller import Caller
from worker.models.synthetic import text_of

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("url")]
DRAW = "/v1/images/generations"
ID = "0123456789abcdef0123456789abcdef"


async def draw(client: httpx.AsyncClient, prompt: str, id: str = ID, **fields: Any) -> None:
    body = {"prompt": prompt, "steps": 1, **fields}
    answer = await client.post(DRAW, json=body, headers={"X-Request-ID": id})
    assert answer.status_code == 200, answer.text


async def listed(client: httpx.AsyncClient, count: int, **query: Any) -> list[dict[str, Any]]:
    """The list once it has ``count`` pictures: they are stored behind the answer."""
    deadline = time.monotonic() + 20
    while True:
        answer = await client.get("/v1/images", params=query)
        assert answer.status_code == 200, answer.text
        data: list[dict[str, Any]] = answer.json()["data"]
        if len(data) == count:
            return data
        assert time.monotonic() < deadline, data
        await anyio.sleep(0.02)


def file_of(home: Path, answer: httpx.Response) -> bytes:
    """What nginx would send."""
    return (home / answer.headers["x-accel-redirect"].removeprefix("/internal/")).read_bytes()


async def test_a_drawn_picture_is_in_the_gallery(client: httpx.AsyncClient, home: Path) -> None:
    await draw(client, "a fox", seed=7, size="128x64", n=2, output_format="webp")
    first, second = await listed(client, 2)
    assert (first["id"], second["id"]) == (f"{ID}-0", f"{ID}-1")
    shape = {"width": 128, "height": 64, "format": "webp", "favourite": False, "job": None}
    assert first.items() >= {"prompt": "a fox", "seed": 7, "steps": 1, **shape}.items()
    answer = await client.get(second["url"])
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["cache-control"].startswith("private, ")
    assert "immutable" in answer.headers["cache-control"]
    assert len(file_of(home, answer)) == second["bytes"]
    details = await client.get(f"{second['url']}/details")
    assert details.json() == second


async def test_streams_and_links_are_stored_too(client: httpx.AsyncClient, home: Path) -> None:
    await draw(client, "streamed", id="1" * 32, stream=True)
    await draw(client, "linked", id="2" * 32, response_format="url")
    for item in await listed(client, 2):
        picture = Image.open(io.BytesIO(file_of(home, await client.get(item["url"]))))
        assert text_of(np.asarray(picture)) == f"{item['prompt']}|{item['seed']}|1"


async def test_what_shall_not_be_stored_is_not(client: httpx.AsyncClient, home: Path) -> None:
    await draw(client, "secret", id="1" * 32, store=False)
    await draw(client, "behind a link", id="2" * 32, store=False, response_format="url")
    await draw(client, "open", id="3" * 32)
    assert [item["prompt"] for item in await listed(client, 1)] == ["open"]


async def test_a_cell_without_a_gallery_keeps_nothing(home: Path) -> None:
    settings = migrated(settings_in(home, gallery={"enabled": False}))
    async with serving(settings) as (service, client):
        await ready(service)
        await draw(client, "a fox")
        await service.components.gallery_writer.close(1)
        await listed(client, 0)
    assert not list((home / "images").glob("*/*"))


async def test_a_replay_is_one_picture(client: httpx.AsyncClient) -> None:
    now = str(time.time() - 1)
    headers = {"X-Request-ID": ID, "X-Request-Start": now}
    for _ in range(2):
        await client.post(DRAW, json={"prompt": "a", "steps": 1}, headers=headers)
    await draw(client, "b", id="f" * 32)
    assert [item["prompt"] for item in await listed(client, 2)] == ["b", "a"]


async def test_the_thumbnail_is_small_and_made_once(client: httpx.AsyncClient, home: Path) -> None:
    await draw(client, "a fox", size="512x256")
    [item] = await listed(client, 1)
    answer = await client.get(item["thumbnail_url"])
    assert answer.headers["content-type"] == "image/webp"
    small = Image.open(io.BytesIO(file_of(home, answer)))
    assert (small.format, small.size) == ("WEBP", (384, 192))
    [made] = (home / "images").glob("*/*.thumb.webp")
    before = made.stat()
    await client.get(item["thumbnail_url"])
    assert made.stat().st_mtime_ns == before.st_mtime_ns


async def test_pages_search_and_favourites(client: httpx.AsyncClient) -> None:
    for k, prompt in enumerate(["a red fox", "a blue fox", "a red hill"]):
        await draw(client, prompt, id=f"{k}" * 32)
    newest = await listed(client, 3)
    assert [item["prompt"] for item in newest] == ["a red hill", "a blue fox", "a red fox"]
    assert [item["prompt"] for item in await listed(client, 1, q="FOX red")] == ["a red fox"]
    page = (await client.get("/v1/images?limit=2")).json()
    assert (len(page["data"]), page["has_more"]) == (2, True)
    rest = (await client.get(f"/v1/images?limit=2&after={page['data'][1]['id']}")).json()
    assert ([item["prompt"] for item in rest["data"]], rest["has_more"]) == (["a red fox"], False)
    marked = await client.patch(newest[1]["url"], json={"favourite": True})
    assert marked.json() == {**newest[1], "favourite": True}
    assert [item["id"] for item in await listed(client, 1, favourite="true")] == [newest[1]["id"]]


async def test_a_deleted_picture_is_gone_with_its_files(
    client: httpx.AsyncClient, home: Path
) -> None:
    await draw(client, "a fox")
    [item] = await listed(client, 1)
    await client.get(item["thumbnail_url"])
    assert (await client.delete(item["url"])).status_code == 204
    for url in (item["url"], item["thumbnail_url"], f"{item['url']}/details"):
        answer = await client.get(url)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert not list((home / "images").glob("*/*"))
    assert (await client.delete(item["url"])).status_code == 404


async def test_a_download_has_a_name(client: httpx.AsyncClient) -> None:
    await draw(client, 'a "fox"; 一座山/../', seed=7, output_format="jpeg")
    [item] = await listed(client, 1)
    answer = await client.get(f"{item['url']}?download=1")
    assert answer.headers["content-disposition"] == (
        "attachment; filename*=UTF-8''a-fox-%E4%B8%80%E5%BA%A7%E5%B1%B1-7.jpg"
    )


async def test_pictures_of_others_do_not_exist(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await draw(client, "mine")
    [item] = await listed(client, 1)
    for module in ("gallery", "images"):
        monkeypatch.setattr(
            f"worker.api.routes.{module}.caller_of", lambda _: Caller("key_2", "key_2", "other")
        )
    await listed(client, 0)
    answers = [
        await client.get(item["url"]),
        await client.get(f"{item['url']}/details"),
        await client.get(item["thumbnail_url"]),
        await client.patch(item["url"], json={"favourite": True}),
        await client.delete(item["url"]),
        await client.get(f"/v1/images?after={item['id']}"),
    ]
    assert {answer.status_code for answer in answers} == {404}
    ops = Caller("key_3", "key_3", "ops", role="ops")
    monkeypatch.setattr("worker.api.routes.gallery.caller_of", lambda _: ops)
    await listed(client, 1)


@pytest.mark.parametrize(
    "id", ["..%2f..%2fetc%2fpasswd", "img_", "img_..%2fx", "a" * 5000, f"{ID}-0.png", "%00"]
)
async def test_what_is_no_id_is_not_found(client: httpx.AsyncClient, id: str) -> None:
    for tail in ("", "/details", "/thumbnail"):
        answer = await client.get(f"/v1/images/{id}{tail}")
        assert answer.status_code == 404
        assert "x-accel-redirect" not in answer.headers


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=ten", "limit"),
        ("favourite=maybe", "favourite"),
        ("search=fox", "search"),
        (f"q={'a' * 201}", "q"),
    ],
)
async def test_a_wrong_query_is_refused_by_name(
    client: httpx.AsyncClient, query: str, param: str
) -> None:
    answer = await client.get(f"/v1/images?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("body", [{}, {"favourite": 1}, {"favourite": True, "prompt": "x"}])
async def test_a_wrong_change_is_refused(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    await draw(client, "a fox")
    [item] = await listed(client, 1)
    assert (await client.patch(item["url"], json=body)).status_code == 400


async def test_drawing_goes_on_without_a_database(home: Path, url: str) -> None:
    async with serving(settings_in(home)) as (service, client):
        await ready(service)
        with away(url):
            await draw(client, "a fox")
            answer = await client.get("/v1/images")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        [item] = await listed(client, 1)
        assert item["prompt"] == "a fox"


async def test_a_picture_whose_file_was_deleted_by_hand_says_so(
    client: httpx.AsyncClient, home: Path
) -> None:
    await draw(client, "a fox")
    [item] = await listed(client, 1)
    for path in (home / "images").glob("*/*"):
        path.unlink()
    for url in (item["url"], item["thumbnail_url"]):
        answer = await client.get(url)
        assert answer.status_code == 404
        assert "draw it again" in answer.json()["error"]["message"]
