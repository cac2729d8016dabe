"""Whatever ``Parameters`` declare goes from the request to all that tells of the picture."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.worker.api.routes.test_gallery import file_of, listed
from tests.worker.api.routes.test_jobs import finished
from tests.worker.conftest import migrated, ready, serving, settings_in
from tests.worker.loras import SHA256, put_lora
from worker.models.base import Sample
from worker.models.loras.folder import LoraFolder
from worker.models.synthetic import SyntheticPipeline
from worker.settings import Settings
from worker.types import FIELDS, ChosenLoras, DrawSpec, Field, Lora, Parameters

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


def other(field: Field) -> Any:
    """A value that is no default."""
    match field.name, field.kind.__name__:
        case "lora", _:
            return ChosenLoras.of([Lora("ink", 0.5, SHA256)])
        case "width" | "height" as side, _:
            return {"width": 128, "height": 64}[side]
        case _, "int":
            return int(field.about.low or 0) + 2
        case _, "float":
            return (field.about.low or 0) + 2.5
        case _, "bool":
            return not field.default
        case name, _:
            return f"some {name}"


ASKED = {name: other(field) for name, field in FIELDS.items() if not field.about.edits}
STORED = {name: value for name, value in ASKED.items() if FIELDS[name].about.jobs}
LORA = {"lora": [{"name": "ink", "scale": 0.5, "sha256": SHA256}]}
BODY = {name: value for name, value in ASKED.items() if name not in ("width", "height")} | LORA
BODY["size"] = f"{ASKED['width']}x{ASKED['height']}"


class Recording(SyntheticPipeline):
    """Keeps what it is given to draw."""

    def __init__(self, source: str, loras: LoraFolder) -> None:
        super().__init__(source, loras)
        self.given: list[DrawSpec] = []

    def start(self, specs: Sequence[DrawSpec]) -> list[Sample]:
        self.given += specs
        return super().start(specs)


class Cell:
    """A worker that draws with a ``Recording``."""

    def __init__(self, home: Path) -> None:
        put_lora(home / "loras")
        self.home = home
        self.pipeline = Recording("synthetic:step_ms=0", LoraFolder(home / "loras"))

    def load(self, _: Settings) -> Recording:
        return self.pipeline

    def given(self, prompt: str) -> Parameters:
        (spec,) = [spec for spec in self.pipeline.given if spec.prompt == prompt]
        return spec.parameters

    def noted(self, prompt: str) -> dict[str, Any]:
        """What the audit log says; whole when the worker has ended."""
        texts = [path.read_text() for path in (self.home / "audit").iterdir()]
        lines = [json.loads(line) for text in texts for line in text.splitlines()]
        (found,) = [line for line in lines if line["prompt"] == prompt]
        return dict(found)


@pytest.fixture
def cell(home: Path) -> Cell:
    return Cell(home)


async def said_in(cell: Cell, client: httpx.AsyncClient, picture: dict[str, Any]) -> str:
    """What the picture's own file says of it."""
    data = file_of(cell.home, await client.get(picture["url"]))
    return str(Image.open(io.BytesIO(data)).info["parameters"])


def require_told(text: str, picture: dict[str, Any]) -> None:
    """``picture`` and the ``text`` in its file have all that is kept of the parameters."""
    assert picture.items() >= {**STORED, **LORA}.items()
    for name, value in STORED.items():
        if name not in ("width", "height"):
            assert f"{FIELDS[name].about.label}: {value}" in text
    assert f"Size: {BODY['size']}" in text


async def test_every_field_of_a_request_survives(cell: Cell) -> None:
    settings = migrated(settings_in(cell.home))
    async with serving(settings, cell.load) as (service, client):
        await ready(service)
        body = {"prompt": "a fox", **BODY}
        assert (await client.post("/v1/images/generations", json=body)).status_code == 200
        (picture,) = await listed(client, 1)
        require_told(await said_in(cell, client, picture), picture)
    assert cell.given("a fox") == Parameters(**ASKED)
    assert cell.noted("a fox").items() >= ASKED.items()


async def test_every_field_of_a_job_survives(cell: Cell) -> None:
    own = {name: v for name, v in BODY.items() if name not in FIELDS or FIELDS[name].about.jobs}
    settings = migrated(settings_in(cell.home))
    async with serving(settings, cell.load) as (service, client):
        await ready(service)
        made = await client.post("/v1/jobs", json={"prompts": ["a fox"], **own})
        assert made.status_code == 202, made.text
        assert made.json()["parameters"].items() >= own.items()
        (picture,) = await listed(client, 1)
        require_told(await said_in(cell, client, picture), picture)
        await finished(client, made.json())
    assert cell.given("a fox") == Parameters(**STORED)
    assert cell.noted("a fox").items() >= STORED.items()


async def test_every_field_is_in_the_document(cell: Cell) -> None:
    async with serving(migrated(settings_in(cell.home)), cell.load) as (service, client):
        await ready(service)
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    jobs = {"size", *STORED} - {"width", "height"}
    assert set(schemas["Generation"]["properties"]) >= set(BODY)
    assert set(schemas["JobSpec"]["properties"]) >= jobs
    kept = {name for name, field in FIELDS.items() if field.about.jobs}
    assert set(schemas["Image"]["required"]) >= kept
    assert set(schemas["Job"]["properties"]["parameters"]["required"]) == {*jobs, "output_format"}
