"""What well-known clients send, word for word, with their defaults."""

import re
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from openai.types import ImageModel, ImagesResponse

from deploy.rendering.plan import GPU_PIXELS
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


OPENAI_SIZES = (
    *("256x256", "512x512", "1024x1024", "1536x1024", "1024x1536", "1792x1024", "1024x1792"),
    "auto",
)


@pytest.mark.parametrize("size", OPENAI_SIZES)
async def test_every_size_of_openais_is_drawn_by_the_defaults_of_a_gpu(
    home: Path, size: str
) -> None:
    settings = settings_in(home, max_pixels=GPU_PIXELS)
    async with serving(migrated(settings)) as (service, client):
        await ready(service)
        answer = await client.post(DRAW, json={"prompt": "a", "size": size, "steps": 1})
    assert answer.status_code == 200, answer.text
    assert size in ("auto", answer.json()["size"])


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


SYNONYMS: dict[str, dict[str, Any]] = {
    "SiliconFlow's": {"image_size": "128x64", "batch_size": 2, "num_inference_steps": 3, "seed": 7},
    "Together's": {"width": 128, "height": 64, "steps": 3, "n": 2, "seed": 7},
    "DashScope's": {"size": "128*64", "n": 2, "steps": 3, "seed": 7},
    "both": {
        "n": 2,
        "batch_size": 2,
        "steps": 3,
        "num_inference_steps": 3,
        "seed": 7,
        "width": 128,
        "height": 64,
        "size": "128x64",
        "image_size": "128*64",
    },
}


@pytest.mark.parametrize("words", SYNONYMS.values(), ids=SYNONYMS)
async def test_words_of_other_apis_mean_the_same(
    client: httpx.AsyncClient, words: dict[str, Any]
) -> None:
    own = {"size": "128x64", "n": 2, "steps": 3, "seed": 7}
    wanted, drawn = [
        (await client.post(DRAW, json={"prompt": "a"} | each)).json() for each in (own, words)
    ]
    assert drawn["size"] == "128x64"
    assert drawn["data"] == wanted["data"]


async def test_jpg_is_jpeg_and_a_seed_of_minus_one_is_none(client: httpx.AsyncClient) -> None:
    body = {"prompt": "a", "size": "64x64", "output_format": "jpg", "seed": -1}
    answers = [(await client.post(DRAW, json=body)).json() for _ in range(2)]
    assert {answer["output_format"] for answer in answers} == {"jpeg"}
    first, second = (answer["data"][0]["seed"] for answer in answers)
    assert first != second


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"n": 2, "batch_size": 3}, "batch_size", "means the same as n, which differs: leave"),
        ({"num_inference_steps": 51}, "num_inference_steps", "51 is out of range: 1 to 50."),
        ({"image_size": "500x512"}, "image_size", "500 is not a multiple of 16"),
        ({"width": 2048, "height": 2048}, "width", "height: 2048x2048 is 4194304 pixels; this"),
        ({"image_size": "landscape_16_9"}, "image_size", "'landscape_16_9' is not WIDTHxHEIGHT"),
        ({"image_size": {"width": 64}}, "image_size", "must be text, not an object."),
        ({"width": 64}, "height", "missing beside width: give both."),
        ({"height": 64, "width": 64, "size": "64x128"}, "width", "means the same as size, which"),
        ({"size": "64x64", "image_size": "64x128"}, "image_size", "means the same as size, which"),
        ({"width": 64.5, "height": 64}, "width", "must be a whole number, not 64.5."),
        ({"width": 64, "height": True}, "height", "must be a whole number, not a boolean."),
        ({"width": 10**7, "height": 64}, "width", "10000000 is out of range: 1 to 999999."),
        ({"batch_size": True}, "batch_size", "must be a whole number, not a boolean."),
        ({"size": "64*64*64"}, "size", "'64x64x64' is not WIDTHxHEIGHT"),
        ({"prompt_enhancement": True}, "prompt_enhancement", "Unknown field 'prompt_enhanc"),
    ],
)
async def test_what_cannot_be_meant_is_refused_by_the_name_that_was_sent(
    client: httpx.AsyncClient, body: dict[str, Any], param: str, message: str
) -> None:
    answer = await client.post(DRAW, json={"prompt": "a"} | body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert message in error["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_unknown_fields_are_passed_over_where_the_cell_says_so(
    home: Path, stream: bool
) -> None:
    settings = settings_in(home, unknown_fields="ignore")
    body = {"prompt": "a", "size": "64x64", "stream": stream}
    odd = {f"field{n}": n for n in range(30)}
    async with serving(migrated(settings)) as (service, client):
        await ready(service)
        plain = await client.post(DRAW, json=body)
        told = await client.post(DRAW, json=body | {"prompt_enhancement": True, "a\r\nb: c": 1})
        many = await client.post(DRAW, json=body | odd)
        wrong = await client.post(DRAW, json=body | {"zzz": 1, "steps": "4"})
    assert "X-Ignored-Fields" not in plain.headers
    assert (told.status_code, told.headers["X-Ignored-Fields"]) == (
        200,
        "prompt_enhancement, a??b??c",
    )
    assert many.headers["X-Ignored-Fields"].split(", ") == list(odd)[:20]
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "steps")


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
