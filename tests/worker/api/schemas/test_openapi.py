"""The document is complete, and its schema of a drawing says what the code does."""

import json
import re
from typing import Any

import httpx
import jsonschema_rs
import pytest
from starlette.routing import Route

from tests.worker.conftest import ready, serving, settings_in
from worker import app
from worker.api.schemas import job_wire, synonyms, wire
from worker.errors import ZimageError
from worker.models.synthetic import SyntheticPipeline
from worker.settings import Settings

FOR_OPERATORS = {"/livez", "/metrics", "/admin/drain", "/admin/undrain", "/admin/ops", "/admin/key"}
SETTINGS = Settings(model="synthetic:")
INFO = SyntheticPipeline("synthetic:").info


@pytest.mark.anyio
async def test_every_address_and_method_is_in_the_document(home: Any) -> None:
    async with serving(settings_in(home)) as (service, client):
        await ready(service)
        document = (await client.get("/openapi.json")).json()
    described = {
        (_shape(path), method.upper())
        for path, item in document["paths"].items()
        for method in item
    }
    served = {
        (_shape(route.path), method)
        for route in app.ROUTES
        if isinstance(route, Route) and route.path not in FOR_OPERATORS
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert served == described


@pytest.mark.anyio
async def test_each_event_of_a_stream_is_as_described(home: Any) -> None:
    async with serving(settings_in(home)) as (service, client):
        await ready(service)
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
        asked = {"prompt": "a", "stream": True}
        frames = (await client.post("/v1/images/generations", json=asked)).text.split("\n\n")
    events = [dict(line.split(": ", 1) for line in frame.splitlines()) for frame in frames if frame]
    assert len(events) > 2
    assert all(jsonschema_rs.is_valid(schemas["Event"], event) for event in events)


def _shape(path: str) -> str:
    """Names of parameters do not matter, nor how many segments one takes."""
    return re.sub(r"\{[^}]*\}(/\{[^}]*\})*", "{}", path)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x"},
        {"prompt": ["x", "狐狸"], "n": 2, "seed": 0, "steps": 50, "stream": True},
        {"prompt": "x", "size": "256x512", "guidance_scale": 30, "timeout_s": 0.1},
        {"prompt": "x", "seed": None, "n": None, "size": None, "model": None},
        {"prompt": "x", "priority": "batch", "output_format": "webp", "output_compression": 0},
        {"prompt": "x", "user": "me", "style": "vivid", "store": False, "size": "auto"},
        {"prompt": ""},
        {"prompt": " \n"},
        {"prompt": []},
        {"prompt": [1]},
        {},
        {"prompt": "x", "n": 0},
        {"prompt": "x", "n": 11},
        {"prompt": "x", "n": True},
        {"prompt": "x", "n": 1.5},
        {"prompt": "x", "seed": 2**32},
        {"prompt": "x", "steps": 51},
        {"prompt": "x", "size": "big"},
        {"prompt": "x", "guidance_scale": 31},
        {"prompt": "x", "timeout_s": 0},
        {"prompt": "x", "priority": "now"},
        {"prompt": "x", "user": 1},
        {"prompt": "x", "resume": "a place"},
        {"prompt": "x", "seed": -1, "output_format": "jpg", "size": "256*512"},
        {"prompt": "x", "width": 256, "height": 512, "batch_size": 2, "num_inference_steps": 50},
        {"prompt": "x", "image_size": "256x512", "width": None},
        {"prompt": "x", "seed": -2},
        {"prompt": "x", "batch_size": 11},
        {"prompt": "x", "num_inference_steps": 51},
        {"prompt": "x", "image_size": {"width": 256}},
        {"prompt": "x", "width": "256", "height": 512},
        {"prompt": "x", "resume": 1},
        {"prompt": "x", "model": 1},
        {"prompt": "x", "negative_prompt": "x" * 4001},
        {"prompt": "x" * 4001},
        {"prompt": "x", "colour": "red"},
    ],
)
def test_schema_takes_what_the_code_takes(body: dict[str, Any]) -> None:
    schema = wire.schema(SETTINGS, INFO)
    try:
        wire.parse(json.dumps(body).encode(), SETTINGS, INFO)
        taken = True
    except ZimageError:
        taken = False
    assert jsonschema_rs.is_valid(schema, body) == taken


def test_schema_has_every_field() -> None:
    properties = wire.schema(SETTINGS, INFO)["properties"]
    assert set(properties) == {*wire.KNOWN, *synonyms.of(wire.KNOWN)}


@pytest.mark.parametrize("module", [wire, job_wire])
def test_schema_is_made_once_and_not_for_each_who_asks(module: Any) -> None:
    assert module.schema(SETTINGS, INFO) is module.schema(SETTINGS, INFO)


def test_schema_lets_by_what_the_code_passes_over() -> None:
    schema = wire.schema(Settings(model="synthetic:", unknown_fields="ignore"), INFO)
    assert jsonschema_rs.is_valid(schema, {"prompt": "x", "colour": "red"})


@pytest.mark.parametrize(
    "body",
    [
        {"prompts": ["x", "狐狸"], "variants": 2, "name": "n", "template": None},
        {"template": "a {red|blue} {what}", "variables": {"what": ["fox"]}, "prompts": None},
        {"template": "a fox", "size": "256x256", "priority": "interactive"},
        {"template": "a fox", "width": 256, "height": 256, "num_inference_steps": 4, "seed": -1},
        {"template": "a fox", "batch_size": 2},
        {},
        {"prompts": None, "template": None},
        {"prompts": ["x"], "template": "x"},
        {"prompts": ["x"], "variables": {"a": ["b"]}},
        {"prompts": []},
        {"prompts": [" "]},
        {"template": ""},
        {"template": "x", "variants": 0},
        {"template": "x", "stream": True},
        {"template": "x", "name": "x" * 201},
    ],
)
def test_schema_of_jobs_takes_what_the_code_takes(body: dict[str, Any]) -> None:
    try:
        job_wire.parse(json.dumps(body).encode(), SETTINGS, INFO, 0)
        taken = True
    except ZimageError:
        taken = False
    assert jsonschema_rs.is_valid(job_wire.schema(SETTINGS, INFO), body) == taken


@pytest.mark.anyio
async def test_below_a_path_the_document_says_where_the_api_is(client: httpx.AsyncClient) -> None:
    told = {"X-Forwarded-Prefix": "/draw"}
    assert (await client.get("/openapi.json", headers=told)).json()["servers"] == [{"url": "/draw"}]
    assert "servers" not in (await client.get("/openapi.json")).json()
