"""Wrong requests and the exact errors that they get."""

from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio
URL = "/v1/images/generations"
KNOWN = (
    "background, complexity, guidance_scale, lora, model, moderation, n, negative_prompt, "
    "output_compression, output_format, partial_images, priority, prompt, quality, reproducible, "
    "response_format, resume, safety_identifier, seed, size, steps, store, stream, style, "
    "timeout_s, user"
)

FIELDS: list[tuple[dict[str, Any], int, str | None, str, str]] = [
    ({}, 400, "prompt", "missing_required_parameter", "prompt: missing: say what to draw."),
    (
        {"prompt": None},
        400,
        "prompt",
        "missing_required_parameter",
        "prompt: missing: say what to draw.",
    ),
    ({"prompt": " "}, 400, "prompt", "invalid_value", "prompt: empty: say what to draw."),
    (
        {"prompt": 7},
        400,
        "prompt",
        "invalid_type",
        "prompt: must be text or a list of texts, not a number.",
    ),
    (
        {"prompt": []},
        400,
        "prompt",
        "invalid_value",
        "prompt: the list is empty: give at least one prompt.",
    ),
    (
        {"prompt": ["a", None]},
        400,
        "prompt[1]",
        "invalid_type",
        "prompt[1]: must be text, not null.",
    ),
    (
        {"prompt": ["a", ""]},
        400,
        "prompt[1]",
        "invalid_value",
        "prompt[1]: empty: say what to draw.",
    ),
    (
        {"prompt": "x" * 4001},
        400,
        "prompt",
        "invalid_value",
        "prompt: 4001 characters; at most 4000 are read: shorten it.",
    ),
    (
        {"prompt": ["a"] * 11},
        400,
        "prompt",
        "invalid_value",
        "prompt: 11 prompts; one request may have 10: send several requests.",
    ),
    (
        {"prompt": "a", "sise": "64x64"},
        400,
        "sise",
        "unknown_parameter",
        "Unknown field 'sise': did you mean size?",
    ),
    (
        {"prompt": "a", "zzz": 1},
        400,
        "zzz",
        "unknown_parameter",
        f"Unknown field 'zzz': known fields: {KNOWN}",
    ),
    (
        {"prompt": "a", "size": "512"},
        400,
        "size",
        "invalid_value",
        "size: '512' is not WIDTHxHEIGHT in pixels, such as 512x768, nor 'auto'.",
    ),
    (
        {"prompt": "a", "size": "500x512"},
        400,
        "size",
        "invalid_value",
        "size: 500 is not a multiple of 16, as both sides must be; the nearest is 496.",
    ),
    (
        {"prompt": "a", "size": "2048x2048"},
        400,
        "size",
        "invalid_value",
        "size: 2048x2048 is 4194304 pixels; this service draws at most 1048576: make it smaller.",
    ),
    (
        {"prompt": "a", "size": "64x32"},
        400,
        "size",
        "invalid_value",
        "size: 32 is too small: each side has at least 64 pixels.",
    ),
    ({"prompt": "a", "size": 64}, 400, "size", "invalid_type", "size: must be text, not a number."),
    ({"prompt": "a", "n": 0}, 400, "n", "invalid_value", "n: 0 is out of range: 1 to 10."),
    ({"prompt": "a", "n": 11}, 400, "n", "invalid_value", "n: 11 is out of range: 1 to 10."),
    (
        {"prompt": "a", "n": 1.5},
        400,
        "n",
        "invalid_type",
        "n: must be a whole number, not 1.5.",
    ),
    (
        {"prompt": "a", "n": True},
        400,
        "n",
        "invalid_type",
        "n: must be a whole number, not a boolean.",
    ),
    (
        {"prompt": "a", "n": 10**400},
        400,
        "n",
        "invalid_value",
        "n: the number is out of range: 1 to 10.",
    ),
    (
        {"prompt": ["a", "b"], "n": 6},
        400,
        "n",
        "invalid_value",
        "n: 2 prompts × n = 6 are 12 pictures; one request may ask for 10: send several requests.",
    ),
    (
        {"prompt": "a", "seed": -2},
        400,
        "seed",
        "invalid_value",
        "seed: -2 is out of range: 0 to 4294967295.",
    ),
    (
        {"prompt": "a", "seed": 2**32},
        400,
        "seed",
        "invalid_value",
        "seed: 4294967296 is out of range: 0 to 4294967295.",
    ),
    (
        {"prompt": "a", "seed": "7"},
        400,
        "seed",
        "invalid_type",
        "seed: must be a whole number, not text.",
    ),
    (
        {"prompt": "a", "response_format": "file"},
        400,
        "response_format",
        "invalid_value",
        "response_format: 'file' is not one of b64_json, url.",
    ),
    (
        {"prompt": "a", "output_format": "gif"},
        400,
        "output_format",
        "invalid_value",
        "output_format: 'gif' is not one of png, jpeg, webp.",
    ),
    (
        {"prompt": "a", "output_compression": 50},
        400,
        "output_compression",
        "invalid_value",
        "output_compression: png is lossless: leave it out, or use jpeg or webp.",
    ),
    (
        {"prompt": "a", "stream": True, "response_format": "url"},
        400,
        "response_format",
        "invalid_value",
        "response_format: a stream carries its pictures itself: use b64_json, or url without "
        "stream.",
    ),
    (
        {"prompt": "a", "stream": "yes"},
        400,
        "stream",
        "invalid_type",
        "stream: must be true or false, not text.",
    ),
    (
        {"prompt": "a", "partial_images": 2},
        400,
        "partial_images",
        "invalid_value",
        "partial_images: previews need stream: true.",
    ),
    (
        {"prompt": "a", "stream": True, "partial_images": 4},
        400,
        "partial_images",
        "invalid_value",
        "partial_images: 4 is out of range: 0 to 3.",
    ),
    (
        {"prompt": "a", "steps": 51},
        400,
        "steps",
        "invalid_value",
        "steps: 51 is out of range: 1 to 50.",
    ),
    (
        {"prompt": "a", "guidance_scale": "high"},
        400,
        "guidance_scale",
        "invalid_type",
        "guidance_scale: must be a number, not text.",
    ),
    (
        {"prompt": "a", "guidance_scale": 31},
        400,
        "guidance_scale",
        "invalid_value",
        "guidance_scale: 31 is out of range: 0 to 30.",
    ),
    (
        {"prompt": "a", "timeout_s": 0},
        400,
        "timeout_s",
        "invalid_value",
        "timeout_s: 0 is out of range: 0.1 to 86400.",
    ),
    (
        {"prompt": "a", "priority": "urgent"},
        400,
        "priority",
        "invalid_value",
        "priority: 'urgent' is not one of interactive, batch.",
    ),
    (
        {"prompt": "a", "negative_prompt": ["b"]},
        400,
        "negative_prompt",
        "invalid_type",
        "negative_prompt: must be text, not a list.",
    ),
    (
        {"prompt": "a", "resume": 3},
        400,
        "resume",
        "invalid_type",
        "resume: must be text, not a number.",
    ),
    (
        {"prompt": "a", "quality": 3},
        400,
        "quality",
        "invalid_type",
        "quality: must be text, not a number.",
    ),
    (
        {"prompt": "a", "model": "dall-e-4"},
        404,
        "model",
        "model_not_found",
        "model: 'dall-e-4' is not served here; use 'synthetic' or leave the field out.",
    ),
]


def envelope(message: str, param: str | None, code: str) -> dict[str, Any]:
    kind = "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@pytest.mark.parametrize(("body", "status", "param", "code", "message"), FIELDS)
async def test_wrong_field_is_named_with_the_remedy(
    client: httpx.AsyncClient,
    body: dict[str, Any],
    status: int,
    param: str | None,
    code: str,
    message: str,
) -> None:
    answer = await client.post(URL, json=body)
    assert answer.json() == envelope(message, param, code)
    assert answer.status_code == status


BODIES: list[tuple[bytes, str]] = [
    (b"", "The body is not valid JSON (Expecting value at line 1, column 1)."),
    (
        b'{"prompt": "a"',
        "The body is not valid JSON (Expecting ',' delimiter at line 1, column 15).",
    ),
    (b'["a"]', "The body must be a JSON object, not a list."),
    (b'"a"', "The body must be a JSON object, not text."),
    (b"null", "The body must be a JSON object, not null."),
    (b"\xff\xfe", "The body is not UTF-8: send JSON encoded in UTF-8."),
    (b'{"seed": NaN}', "The body is not valid JSON (NaN is not a JSON number)."),
    (b"[" * 200_000, "The body is nested too deeply: send one flat JSON object."),
]


@pytest.mark.parametrize(("body", "message"), BODIES, ids=lambda value: repr(value)[:24])
async def test_body_that_is_no_json_object_is_refused(
    client: httpx.AsyncClient, body: bytes, message: str
) -> None:
    answer = await client.post(URL, content=body, headers={"Content-Type": "application/json"})
    assert answer.json() == envelope(message, None, "invalid_json")
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            rb'{"prompt": "\ud800"}',
            "prompt: has half of a surrogate pair: send complete characters.",
        ),
        (b'{"prompt": "a", "guidance_scale": 1e999}', "guidance_scale: must be a number, not inf."),
    ],
)
async def test_json_beyond_what_python_dumps_is_refused(
    client: httpx.AsyncClient, body: bytes, message: str
) -> None:
    answer = await client.post(URL, content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["error"]["message"] == message
    assert answer.status_code == 400


async def test_number_of_thousands_of_digits_is_refused(client: httpx.AsyncClient) -> None:
    body = b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}"
    answer = await client.post(URL, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("media_type", "shown"),
    [("", "nothing"), ("application/x-www-form-urlencoded", "'application/x-www-form-urlencoded'")],
)
async def test_body_of_another_type_is_refused(
    client: httpx.AsyncClient, media_type: str, shown: str
) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    answer = await client.post(URL, content=b'{"prompt": "a"}', headers=headers)
    message = f"Content-Type says {shown}: send JSON with Content-Type: application/json."
    assert answer.json() == envelope(message, None, "unsupported_media_type")
    assert answer.status_code == 415


@pytest.mark.parametrize("announced", [True, False])
async def test_body_over_the_limit_is_refused(client: httpx.AsyncClient, announced: bool) -> None:
    async def chunks() -> Any:
        for _ in range(40):
            yield b" " * 65_536

    content = b" " * 1_048_577 if announced else chunks()
    answer = await client.post(URL, content=content, headers={"Content-Type": "application/json"})
    message = "The body is over 1048576 bytes: send a smaller one."
    assert answer.json() == envelope(message, None, "request_too_large")
    assert answer.status_code == 413


async def test_wrong_method_names_the_right_one(client: httpx.AsyncClient) -> None:
    answer = await client.get(URL)
    message = "GET is not possible here: use POST."
    assert answer.json() == envelope(message, None, "method_not_allowed")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/v1/images/upscales", "/", "/v1/models/"])
async def test_unknown_route_gets_the_envelope(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.status_code == 404


async def test_fields_of_openai_without_a_meaning_are_accepted(client: httpx.AsyncClient) -> None:
    body = {
        "prompt": "a",
        "model": None,
        "quality": "hd",
        "style": "vivid",
        "background": "transparent",
        "moderation": "low",
        "user": "u1",
        "safety_identifier": "s",
        "complexity": "high",
        "output_compression": 100,
        "n": None,
    }
    answer = await client.post(URL, json=body)
    assert answer.status_code == 200
    assert answer.json()["background"] == "opaque"


@pytest.mark.parametrize("name", ["synthetic", "SYNTHETIC", "synthetic:step_ms=1"])
async def test_model_answers_to_its_id_and_its_source(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.post(URL, json={"prompt": "a", "model": name})
    assert answer.status_code == 200
