"""Pictures of a bucket through the API, in one process, with a real store that comes and goes."""

import asyncio
import io
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from PIL import Image

from tests.object_store import ObjectStore
from tests.ports import free_port
from tests.worker.conftest import migrated, ready, serving, settings_in
from worker.lifecycle import Lifecycle
from worker.settings import Settings
from worker.storage.bucket_images import BucketImages

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("s3"), pytest.mark.timeout(120)]
DRAW = "/v1/images/generations"


@pytest.fixture
def settings(home: Path, object_store: ObjectStore, request: pytest.FixtureRequest) -> Settings:
    """With credentials of their own: a store that refuses them is away."""
    own = home / "credentials"
    own.write_bytes(object_store.credentials.read_bytes())
    prefix = f"api/{request.node.name}"
    objects = object_store.objects(prefix, credentials_file=str(own), spool_gib=0.017)
    return migrated(settings_in(home, objects=objects))


def images_of(service: Lifecycle) -> BucketImages:
    images = service.components.images
    assert isinstance(images, BucketImages)
    return images


class Outage:
    """The store of a worker, away and back."""

    def __init__(self, service: Lifecycle, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("worker.storage.bucket._REREAD_S", 0.0)
        monkeypatch.setattr("worker.storage.outage.REST_S", 0.0)
        self.bucket, self._file = images_of(service).bucket, home / "credentials"

    async def begin(self) -> None:
        self._file.rename(self._file.with_name("taken"))
        await eventually(lambda: self._tried() != "")

    def end(self) -> None:
        self._file.with_name("taken").rename(self._file)

    def _tried(self) -> str:
        try:
            self.bucket.has("anything")
        except Exception:
            return self.bucket.away
        return ""


async def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not await asyncio.to_thread(true):
        assert time.monotonic() < deadline
        await anyio.sleep(0.02)


async def draw(client: httpx.AsyncClient, prompt: str, **fields: Any) -> httpx.Response:
    body = {"prompt": prompt, "size": "64x64", "steps": 1, "response_format": "url", **fields}
    return await client.post(DRAW, json=body)


async def linked(client: httpx.AsyncClient, prompt: str) -> str:
    answer = await draw(client, prompt)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["data"][0]["url"])


async def kept(client: httpx.AsyncClient, prompt: str) -> dict[str, Any]:
    """The gallery's picture of ``prompt``, once it is there."""
    deadline = time.monotonic() + 20
    while True:
        for picture in (await client.get("/v1/images")).json()["data"]:
            if picture["prompt"] == prompt:
                return dict(picture)
        assert time.monotonic() < deadline
        await anyio.sleep(0.02)


async def completed(client: httpx.AsyncClient, job_url: str) -> None:
    deadline = time.monotonic() + 30
    while (await client.get(job_url)).json()["state"] != "completed":
        assert time.monotonic() < deadline
        await anyio.sleep(0.02)


def name_of(answer: httpx.Response) -> str:
    """The picture to which nginx is sent, by an address that is signed."""
    name, _, query = answer.headers["x-accel-redirect"].partition("?")
    assert "X-Amz-Signature=" in query
    return str(name.removeprefix("/internal/objects/"))


async def test_a_picture_is_put_linked_seen_small_and_deleted(settings: Settings) -> None:
    async with serving(settings) as (service, client):
        await ready(service)
        images = images_of(service)
        url = await linked(client, "a fox")
        opened = await client.get(url)
        name = name_of(opened)
        assert opened.headers["content-type"] == "image/png"
        assert images.bucket.get(name).startswith(b"\x89PNG")
        picture = await kept(client, "a fox")
        assert name_of(await client.get(picture["url"])) == name
        small = name_of(await client.get(picture["thumbnail_url"]))
        assert Image.open(io.BytesIO(images.bucket.get(small))).format == "WEBP"
        assert not list(settings.var_dir.rglob("*.png"))
        assert (await client.delete(picture["url"])).status_code == 204
        assert (await client.get(url)).status_code == 404
        assert images.files() == []


async def test_a_worker_knows_from_its_start_that_the_store_is_away(settings: Settings) -> None:
    gone = settings.objects.model_copy(update={"endpoint": f"http://127.0.0.1:{free_port()}"})
    async with serving(settings.model_copy(update={"objects": gone})) as (service, _):
        await eventually(lambda: "error sending request" in images_of(service).bucket.away)


async def test_while_the_store_is_away_drawing_goes_on_and_nothing_is_lost(
    settings: Settings, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(settings) as (service, client):
        await ready(service)
        images, outage = images_of(service), Outage(service, home, monkeypatch)
        before, doomed = await linked(client, "before"), await linked(client, "doomed")
        gone = name_of(await client.get(doomed))
        doomed_picture = await kept(client, "doomed")
        before_picture = await kept(client, "before")
        await outage.begin()
        inline = await draw(client, "inline", response_format="b64_json")
        assert inline.status_code == 200
        spooled = await draw(client, "spooled")
        assert spooled.status_code == 200
        away = await client.get(before)
        assert (away.status_code, away.json()["error"]["code"]) == (503, "pictures_unavailable")
        small = await client.get(before_picture["thumbnail_url"])
        assert (small.status_code, small.json()["error"]["code"]) == (503, "pictures_unavailable")
        assert (await client.delete(doomed_picture["url"])).status_code == 204
        job = await client.post("/v1/jobs", json={"prompts": ["one", "two"], "size": "64x64"})
        assert job.status_code == 202, job.text
        fill = images.spool.pictures.path("2026-01-01/img_fill.png")
        fill.parent.mkdir()
        fill.write_bytes(bytes(3 << 20))
        full = await draw(client, "full")
        assert (full.status_code, full.json()["error"]["code"]) == (507, "storage_failed")
        fill.unlink()
        job_url = f"/v1/jobs/{job.json()['id']}"
        assert (await client.get(job_url)).json()["counts"]["done"] == 0
        assert {file.name for file in images.spool.waiting()}
        outage.end()
        await eventually(lambda: not images.spool.waiting() and not images.spool.deleted())
        assert not images.bucket.has(gone)
        opened = name_of(await client.get(spooled.json()["data"][0]["url"]))
        assert images.bucket.get(opened).startswith(b"\x89PNG")
        await kept(client, "inline")
        await completed(client, job_url)
        results = zipfile.ZipFile(io.BytesIO((await client.get(f"{job_url}/results.zip")).content))
        assert sorted(results.namelist()) == ["0001-one.png", "0002-two.png"]
        assert not list(settings.var_dir.rglob("*.png"))


async def test_a_picture_that_waits_on_another_host_is_not_called_deleted(
    shared_url: str,
    home: Path,
    object_store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def host(name: str) -> Settings:
        folder = home / name
        folder.mkdir()
        own = folder / "credentials"
        own.write_bytes(object_store.credentials.read_bytes())
        objects = object_store.objects("api/two_hosts", credentials_file=str(own), spool_gib=0.017)
        places = {"run_dir": folder / "run", "var_dir": folder}
        secret = home / "secret"
        return settings_in(home, objects=objects, host=name, cluster_secret=secret, **places)

    (home / "secret").write_bytes(b"s" * 32)
    async with serving(host("a")) as (one, a), serving(host("b")) as (two, b):
        await ready(one)
        await ready(two)
        outage = Outage(one, home / "a", monkeypatch)
        await outage.begin()
        url = await linked(a, "spooled")
        assert len(images_of(one).spool.waiting()) == 1
        picture = await kept(b, "spooled")
        for path in (url, picture["url"], picture["thumbnail_url"]):
            answer = await b.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (
                503,
                "picture_elsewhere",
            ), path
            assert answer.headers["Retry-After"] == "5"
        outage.end()
        await eventually(lambda: not images_of(one).spool.waiting())
        assert name_of(await b.get(url)) == name_of(await b.get(picture["url"]))
        assert (await b.delete(picture["url"])).status_code == 204
        assert [(await each.get(url)).status_code for each in (a, b)] == [404, 404]
