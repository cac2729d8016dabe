"""What well-known clients send, word for word, with their defaults."""

import re
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from openai.types import ImageModel, ImagesResponse

from tests.worker.conftest import migrated, ready, serving, settings_in
from worker import tables

pytestmark = pytest.mark.anyio
DRAW = "/v1/images/generations"

ALIASED: dict[str, dict[str, Any]] = {
    "LibreChat": {
        "model": "dall-e-3",
        "prompt": "a red circle",
        "quality": "standard",
        "style": "vivid",
        "size": "1024x1024",
        "n": 1,
    },
    "llama-index": {"prompt": "a red circle", "model": "dall-e-3", "size": "1024x1024", "n": 1},
    "agno": {
        "prompt": "a red circle",
        "model": "dall-e-3",
        "n": 1,
        "quality": "standard",
        "size": "1024x1024",
        "style": "vivid",
    },
    "Open WebUI": {"model": "gpt-image-1", "prompt": "a red circle", "n": 1, "size": "512x512"},
}


async def names(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    answer = await client.get("/v1/models")
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


@pytest.mark.parametrize("body", ALIASED.values(), ids=ALIASED)
async def test_a_client_that_knows_openais_models_alone_draws(
    client: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    answer = await client.post(DRAW, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["size"] == body["size"]


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ({"model": "dall-e-3"}, "url"),
        ({"model": "DALL-E-2", "response_format": None}, "url"),
        ({"model": "dall-e-3", "response_format": "b64_json"}, "b64_json"),
        ({"model": "gpt-image-1"}, "b64_json"),
        ({"model": "gpt-image-1", "response_format": "url"}, "url"),
        ({}, "b64_json"),
    ],
)
async def test_pictures_come_as_openai_sends_those_of_that_name(
    client: httpx.AsyncClient, body: dict[str, Any], key: str
) -> None:
    [item] = (await client.post(DRAW, json={"prompt": "a", "size": "64x64"} | body)).json()["data"]
    assert set(item) == {"seed", key}


async def test_a_stream_of_dall_e_carries_its_pictures(client: httpx.AsyncClient) -> None:
    body = {"prompt": "a", "size": "64x64", "model": "dall-e-3", "stream": True}
    answer = await client.post(DRAW, json=body)
    assert answer.status_code == 200
    assert '"b64_json":"' in answer.text


async def test_dify_finds_the_usage_that_it_reads(client: httpx.AsyncClient) -> None:
    body = {
        "model": "gpt-image-1",
        "prompt": "a red circle",
        "n": 1,
        "size": "1024x1024",
        "quality": "auto",
        "background": "auto",
        "moderation": "auto",
        "output_format": "png",
    }
    usage = ImagesResponse.model_validate((await client.post(DRAW, json=body)).json()).usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (0, 0, 0)
    assert usage.input_tokens_details.text_tokens == 0


async def test_models_lists_the_model_and_its_aliases_marked(client: httpx.AsyncClient) -> None:
    own, *aliases = await names(client)
    assert own["alias_of"] is None
    assert [each["id"] for each in aliases] == list(tables.OPENAI_MODELS)
    assert {each["alias_of"] for each in aliases} == {own["id"]}
    one = (await client.get("/v1/models/DALL-E-3")).json()
    assert (one["id"], one["alias_of"]) == ("dall-e-3", own["id"])


async def test_each_name_that_is_listed_draws_and_is_in_the_schema(
    client: httpx.AsyncClient,
) -> None:
    document = (await client.get("/openapi.json")).json()
    enum = document["components"]["schemas"]["Generation"]["properties"]["model"]["enum"]
    assert {each["id"] for each in await names(client)} <= set(enum)
    for name in enum:
        drawn = await client.post(DRAW, json={"prompt": "a", "size": "64x64", "model": name})
        assert drawn.status_code == 200, (name, drawn.text)


async def test_no_model_of_openais_library_was_forgotten() -> None:
    undated = {name for name in get_args(ImageModel) if not re.search(r"-\d{4}-\d{2}-\d{2}$", name)}
    assert undated <= set(tables.OPENAI_MODELS)


async def test_a_name_of_its_own_and_no_aliases(home: Path) -> None:
    settings = migrated(settings_in(home, names={"name": "House Style", "aliases": []}))
    async with serving(settings) as (service, client):
        await ready(service)
        assert [each["id"] for each in await names(client)] == ["House Style"]
        body = {"prompt": "a", "size": "64x64"}
        for name in ("House Style", "house style", "synthetic", "synthetic:step_ms=1"):
            assert (await client.post(DRAW, json=body | {"model": name})).status_code == 200
            shown = (await client.get(f"/v1/models/{name}")).json()
            assert (shown["id"], shown["alias_of"]) == ("House Style", None)
        refused = await client.post(DRAW, json=body | {"model": "dall-e-3"})
        assert refused.status_code == 404
        assert "use 'House Style'" in refused.json()["error"]["message"]
        assert (await client.get("/v1/models/dall-e-3")).status_code == 404


async def test_metrics_keep_the_true_model(home: Path) -> None:
    settings = migrated(settings_in(home, names={"name": "house"}))
    async with serving(settings) as (service, client):
        await ready(service)
        body = {"prompt": "a", "size": "64x64", "model": "dall-e-3"}
        assert (await client.post(DRAW, json=body)).status_code == 200
        metrics = (await client.get("/metrics")).text
    assert 'model="synthetic"' in metrics
    assert '"house"' not in metrics
    assert "dall-e" not in metrics
