"""Adapters that requests and jobs name."""

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.worker.api.routes.test_jobs import finished
from tests.worker.conftest import migrated, ready, serving, settings_in
from tests.worker.loras import SHA256, put_lora
from tinymodel import build, train_loras
from tinymodel.captions import scene_of
from tinymodel.judge import judge
from worker.coordination import host_drain
from worker.models.loading.sources import load
from worker.models.loras.adding import add
from worker.models.loras.conversion import layers_of_folder
from worker.models.synthetic import text_of

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

URL = "/v1/images/generations"
OTHER = "f" * 64


@pytest.fixture
def folder(home: Path) -> Path:
    for name in ("ink", "wash", "a1", "a2", "a3"):
        put_lora(home / "loras", name)
    return home / "loras"


def body(*loras: object, **more: Any) -> dict[str, Any]:
    return {"prompt": "a fox", "seed": 7, "size": "256x64", "lora": [*loras], **more}


async def spelled(client: httpx.AsyncClient, asked: dict[str, Any]) -> str:
    answer = await client.post(URL, json=asked)
    assert answer.status_code == 200, answer.text
    data = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return text_of(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


async def test_a_picture_is_drawn_with_the_adapters_that_were_asked_for(
    folder: Path, client: httpx.AsyncClient
) -> None:
    drawn = await spelled(client, body({"name": "wash", "scale": -1.5}, {"name": "ink"}))
    assert drawn == f"a fox|7|8|ink*1@{SHA256};wash*-1.5@{SHA256}"
    assert await spelled(client, body()) == "a fox|7|8"
    put_lora(folder, "later")  # without a restart
    assert "later*1@" in await spelled(client, body({"name": "later"}))


REFUSED: list[tuple[object, str, str]] = [
    ({"name": "ink"}, "lora", "lora: must be a list of objects, not an object."),
    (["ink"], "lora[0]", "lora[0]: must be an object with name and scale, not text."),
    ([{"scale": 1}], "lora[0].name", "lora[0].name: missing: name an adapter, as GET /v1/loras"),
    ([{"name": "ink", "size": 1}], "size", "Unknown field 'size': known fields: name, scale, sha"),
    ([{"name": "nowhere"}], "lora", "lora: there is no adapter 'nowhere' for you: GET /v1/loras"),
    ([{"name": "../ink"}], "lora", "lora: there is no adapter '../ink' for you: GET /v1/loras"),
    ([{"name": 7}], "lora[0].name", "lora[0].name: must be text, not a number."),
    (
        [{"name": "ink"}, {"name": "wash", "scale": 4.1}],
        "lora[1].scale",
        "lora[1].scale: is out of range: -4 to 4.",
    ),
    (
        [{"name": "ink", "scale": True}],
        "lora[0].scale",
        "lora[0].scale: must be a number, not a boolean.",
    ),
    (
        [{"name": "ink"}, {"name": "ink", "scale": 2}],
        "lora[1].name",
        "lora[1].name: ink is named twice: name it once.",
    ),
    (
        [{"name": name} for name in ("ink", "wash", "a1", "a2", "a3")],
        "lora",
        "lora: 5 adapters; a drawing may have 4: use fewer.",
    ),
    (
        [{"name": "ink", "sha256": OTHER}],
        "lora",
        f"lora: ink is another file here now (SHA-256 {SHA256[:12]}…, asked for {OTHER[:12]}…)",
    ),
]


async def test_what_cannot_be_drawn_is_refused_by_field(
    folder: Path, client: httpx.AsyncClient
) -> None:
    for lora, param, message in REFUSED:
        answer = await client.post(URL, json=body() | {"lora": lora})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), error
        assert error["message"].startswith(message)


async def test_an_adapter_that_changed_fails_the_items_of_jobs_that_want_the_old_one(
    home: Path, folder: Path
) -> None:
    settings = migrated(settings_in(home))
    flag = host_drain.flag(settings.run_dir)
    async with serving(settings) as (service, client):
        await ready(service)
        flag.touch()  # nothing of jobs is begun
        made = []
        for name in ("ink", "wash"):
            asked = {"prompts": ["a"], "lora": [{"name": name}], "size": "64x64"}
            made.append((await client.post("/v1/jobs", json=asked)).json())
            assert made[-1]["parameters"]["lora"] == [
                {"name": name, "scale": 1.0, "sha256": SHA256}
            ]
        (folder / "ink.safetensors").unlink()
        put_lora(folder, "ink", OTHER)
        flag.unlink()
        service.components.jobs.notify()
        spoilt, fine = [await finished(client, job) for job in made]
    assert (spoilt["counts"]["failed"], fine["counts"]["done"]) == (1, 1)


async def test_the_shipped_model_draws_each_request_with_its_own_adapter(home: Path) -> None:
    asked = "a large yellow heart on a green background"
    wanted = scene_of(asked)
    assert wanted is not None
    for name in train_loras.CHANGES:
        file = train_loras.FOLDER / f"{name}.safetensors"
        add(file, name, home / "loras", layers_of_folder(build.WEIGHTS))
    async with serving(migrated(settings_in(home, model="tiny")), load) as (service, client):
        await ready(service)
        listed = (await client.get("/v1/loras")).json()["data"]
        assert [lora["name"] for lora in listed] == ["night", "stars"]

        async def drawn(*names: str) -> tuple[Image.Image, str]:
            loras = [{"name": name} for name in names]
            request = {"prompt": asked, "seed": 1, "size": "128x128", "lora": loras}
            answer = await client.post(URL, json=request)
            assert answer.status_code == 200, answer.text
            data = base64.b64decode(answer.json()["data"][0]["b64_json"])
            image = Image.open(io.BytesIO(data))
            return image.convert("RGB"), str(image.info["parameters"])

        pictures = await asyncio.gather(drawn(), drawn("night"), drawn("stars"))
    changes = [lambda scene: scene, train_loras.night, train_loras.stars]
    for (image, _), change in zip(pictures, changes, strict=True):
        assert judge(image, change(wanted)).ok
    assert "Lora" not in pictures[0][1]
    assert f"Lora: night*1@{listed[0]['sha256']}" in pictures[1][1]
