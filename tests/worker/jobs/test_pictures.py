"""Jobs whose items go on from a picture that is there: of the gallery, or an upload."""

import hashlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image

from tests.object_store import ObjectStore
from tests.worker.api.middleware.test_access import Keyed, keyed  # noqa: F401 — a fixture
from tests.worker.api.routes.test_edits import EDITS, mask, pixels_in, png, refusal
from tests.worker.api.routes.test_gallery import file_of, listed
from tests.worker.api.routes.test_jobs import finished
from tests.worker.api.routes.test_uploads import UPLOADS, expire, kept_files, uploaded
from tests.worker.conftest import migrated, ready, serving, settings_in
from worker.coordination import host_drain
from worker.lifecycle import Lifecycle
from worker.models.synthetic import text_of
from worker.storage.jobs import jobs
from worker.types import PICTURES_SINCE, Pixels

pytestmark = pytest.mark.anyio
JOBS = "/v1/jobs"


async def made(client: httpx.AsyncClient, **asked: Any) -> dict[str, Any]:
    answer = await client.post(JOBS, json={"prompts": ["a", "b"], "seed": 7, **asked})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


async def items_of(client: httpx.AsyncClient, job: dict[str, Any]) -> list[dict[str, Any]]:
    await finished(client, job)
    return list((await client.get(f"{JOBS}/{job['id']}/items")).json()["data"])


async def drawn(client: httpx.AsyncClient, home: Path, image: dict[str, Any]) -> Pixels:
    data = file_of(home, await client.get(image["url"]))
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture
async def service(home: Path) -> AsyncIterator[tuple[Lifecycle, httpx.AsyncClient]]:
    async with serving(migrated(settings_in(home))) as (service, client):
        await ready(service)
        yield service, client


@pytest.fixture
def client(service: tuple[Lifecycle, httpx.AsyncClient]) -> httpx.AsyncClient:
    return service[1]


async def test_items_are_drawn_as_edits_are(client: httpx.AsyncClient, home: Path) -> None:
    """Each at the picture's size, as strong as an edit, under the digest of what was sent."""
    upload = await uploaded(client, png())
    job = await made(client, image=upload["id"])
    assert (
        job["parameters"].items()
        >= {
            "size": "128x96",
            "image": upload["id"],
            "strength": 0.6,
            "fit": "cover",
        }.items()
    )
    items = await items_of(client, job)
    for item, prompt in zip(items, ("a", "b"), strict=True):
        pixels = await drawn(client, home, item["image"])
        edit = {"prompt": prompt, "image": upload["id"], "seed": item["seed"], "store": False}
        assert np.array_equal(pixels, pixels_in(await client.post(EDITS, json=edit)))
        assert item["image"]["image_sha256"] == hashlib.sha256(png()).hexdigest()
        assert item["image"]["mask_sha256"] is None


async def test_a_part_of_a_picture_of_the_gallery_is_drawn_anew_by_each(
    client: httpx.AsyncClient, home: Path
) -> None:
    asked = {"prompt": "a fox", "seed": 1, "size": "128x96"}
    await client.post("/v1/images/generations", json=asked)
    (first,) = await listed(client, 1)
    before = await drawn(client, home, first)
    hidden = await uploaded(client, mask())
    job = await made(client, image=first["id"], mask=hidden["id"])
    assert job["parameters"]["strength"] == 1.0
    for item in await items_of(client, job):
        pixels = await drawn(client, home, item["image"])
        assert np.array_equal(pixels[:, :64], before[:, :64])
        assert (pixels[1:, 64:] != before[1:, 64:]).any()
        assert item["image"]["mask_sha256"] == hashlib.sha256(mask()).hexdigest()
        told = {"image": first["id"], "mask": hidden["id"], "fit": "cover", "position": None}
        assert item["image"]["drawn_from"] == told


async def test_a_picture_is_extended(client: httpx.AsyncClient, home: Path) -> None:
    upload = await uploaded(client, png())
    asked = {"fit": "extend", "position": "16,32", "size": "256x192"}
    job = await made(client, image=upload["id"], **asked)
    assert job["parameters"].items() >= {**asked, "strength": 1.0}.items()
    for item in await items_of(client, job):
        pixels = await drawn(client, home, item["image"])
        assert (pixels[32:128, 16:144] == (200, 30, 40)).all()


async def test_the_audit_log_names_what_items_were_drawn_from(home: Path) -> None:
    async with serving(migrated(settings_in(home))) as (service, client):
        await ready(service)
        await items_of(client, await made(client, image=(await uploaded(client, png()))["id"]))
    lines = [line for path in (home / "audit").iterdir() for line in path.read_text().splitlines()]
    told = {json.loads(line).get("image_sha256") for line in lines}
    assert told == {hashlib.sha256(png()).hexdigest()}


async def test_an_upload_that_expires_is_held_for_an_open_job(
    service: tuple[Lifecycle, httpx.AsyncClient], home: Path
) -> None:
    life, client = service
    flag = host_drain.flag(home / "run")
    flag.touch()  # nothing is leased meanwhile
    image, hidden, other = [await uploaded(client, file) for file in (png(), mask(), png())]
    job = await made(client, image=image["id"], mask=hidden["id"])
    for upload in (image, hidden, other):
        await expire(life, upload["id"])
    assert {file.stem for file in kept_files(home)} == {image["id"], hidden["id"]}
    flag.unlink()
    assert {item["state"] for item in await items_of(client, job)} == {"done"}
    await life.components.sweeper.sweep()
    assert not kept_files(home)


async def test_items_say_that_their_picture_was_deleted(
    client: httpx.AsyncClient, home: Path
) -> None:
    flag = host_drain.flag(home / "run")
    flag.touch()
    upload = await uploaded(client, png())
    job = await made(client, image=upload["id"])
    assert (await client.delete(f"{UPLOADS}/{upload['id']}")).status_code == 204
    flag.unlink()
    for item in await items_of(client, job):
        assert (item["state"], item["error"]["code"]) == ("failed", "not_found")
        assert "image: there is no picture" in item["error"]["message"]


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "address": ({"image": "http://169.254.0.1/"}, "image", "nothing is fetched here"),
    "mask's address": ({"mask": "file:///etc/passwd"}, "mask", "nothing is fetched here"),
    "no id": ({"image": "a.png"}, "image", "no id of a picture"),
    "mask alone": ({"image": None, "mask": f"upload_{'0' * 32}"}, "mask", "add image"),
    "strength alone": ({"image": None, "strength": 0.5}, "strength", "add image"),
    "strength 0": ({"strength": 0}, "strength", "use more"),
    "extended": ({"fit": "extend"}, "size", "say how large"),
    "too small": ({"fit": "extend", "size": "64x64"}, "size", "smaller than the image"),
    "position": ({"position": "1,1"}, "position", "fit: extend"),
}


async def test_what_is_wrong_is_named_before_anything_is_made(client: httpx.AsyncClient) -> None:
    image = (await uploaded(client, png()))["id"]
    for name, (changes, param, why) in REFUSED.items():
        asked = {"prompts": ["a"], "image": image, **changes}
        told, message = refusal(await client.post(JOBS, json=asked))
        assert (told, why in message) == (param, True), (name, message)
    assert (await client.get(JOBS)).json()["data"] == []


async def test_a_mask_is_as_large_as_its_picture(client: httpx.AsyncClient) -> None:
    image, small = await uploaded(client, png()), await uploaded(client, mask((64, 64)))
    asked = {"prompts": ["a"], "image": image["id"], "mask": small["id"]}
    param, message = refusal(await client.post(JOBS, json=asked))
    assert (param, message) == (
        "mask",
        "mask: it is 64×64, the image 128×96: make both alike.",
    )


async def test_nobody_draws_from_what_is_somebody_elses(keyed: Keyed) -> None:  # noqa: F811
    _, ada = await keyed.make("ada")
    _, eve = await keyed.make("eve", role="ops")
    as_ada, as_eve = ({"Authorization": f"Bearer {token}"} for token in (ada, eve))
    upload = await uploaded(keyed.client, png(), **as_ada)
    asked = {"prompts": ["a"], "image": upload["id"]}
    answer = await keyed.client.post(JOBS, json=asked, headers=as_eve)
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "image")
    assert (await keyed.client.post(JOBS, json=asked, headers=as_ada)).status_code == 202


async def test_a_worker_that_knows_no_pictures_draws_none_of_it(
    service: tuple[Lifecycle, httpx.AsyncClient], home: Path
) -> None:
    """While a cell is upgraded, it would draw from text alone."""
    life, client = service
    host_drain.flag(home / "run").touch()
    plain = await made(client, size="64x64")
    upload = await uploaded(client, png())
    masked = await made(client, image=upload["id"], strength=1.0)
    query = sa.select(jobs.c.id, jobs.c.needs)
    needs = dict(await life.components.database.read(lambda c: c.execute(query).all()))
    assert needs == {plain["id"]: 0, masked["id"]: PICTURES_SINCE}


@pytest.mark.xdist_group("s3")
async def test_another_host_draws_from_the_shared_store(
    home: Path, shared_url: str, object_store: ObjectStore
) -> None:
    objects = object_store.objects("job-pictures").model_dump()
    about = {"database_url": shared_url, "objects": objects}
    async with serving(settings_in(home / "a", host="a", **about)) as (service, client):
        await ready(service)
        host_drain.flag(home / "a" / "run").touch()
        job = await made(client, image=(await uploaded(client, png()))["id"])
    async with serving(settings_in(home / "b", host="b", **about)) as (service, client):
        await ready(service)
        for item in await items_of(client, job):
            name = next(
                file.name
                for file in service.components.images.files()
                if file.id == item["image"]["id"]
            )
            picture = Image.open(io.BytesIO(service.components.images.read(name)))
            assert text_of(np.asarray(picture)) == f"{item['prompt']}|{item['seed']}|5"
