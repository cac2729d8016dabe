"""What applications send, word for word, and what they read of the answer.

Read in their sources, whose lines are named at each. What they type into their settings as base URL
is in docs/clients.md.
"""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

from worker.models.synthetic import text_of

pytestmark = pytest.mark.anyio
PROMPT = "a red circle, 一只红色的猫"
Answer = dict[str, Any]


def from_base64(answer: Answer) -> str:
    """The prompt that the first picture spells."""
    raw = base64.b64decode(answer["data"][0]["b64_json"], validate=True)
    assert raw.startswith(b"\x89PNG")
    pixels = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
    return text_of(pixels).split("|")[0]


def as_a_link(answer: Answer) -> str:
    """For those that fetch it: its name ends as that of a picture does."""
    [item] = answer["data"]
    assert "b64_json" not in item
    link = urlsplit(item["url"])
    assert link.scheme in ("http", "https")
    assert link.path.endswith(".png")
    return PROMPT


def whichever_it_is(answer: Answer) -> str:
    item = answer["data"][0]
    return as_a_link(answer) if item.get("url") else from_base64(answer)


def with_its_usage(answer: Answer) -> str:
    """Dify reads all of these without asking whether they are there."""
    usage = answer["usage"]
    total = usage["input_tokens"] + usage["output_tokens"]
    details = usage["input_tokens_details"]
    assert (usage["total_tokens"], details["text_tokens"], details["image_tokens"]) == (total, 0, 0)
    return from_base64(answer)


@dataclass(frozen=True)
class Sent:
    """``read`` gives the prompt of the picture that the application shows."""

    body: dict[str, Any]
    read: Callable[[Answer], str]


APPLICATIONS = {
    # open-webui/open-webui, backend/open_webui/routers/images.py: image_generations, engine
    # "openai". Its model is dall-e-2 where none is set; response_format is left out for names
    # that begin with gpt-image (config.py: IMAGE_URL_RESPONSE_MODELS_REGEX_PATTERN).
    "Open WebUI": Sent(
        {
            "model": "dall-e-2",
            "prompt": PROMPT,
            "n": 1,
            "size": "512x512",
            "response_format": "b64_json",
        },
        whichever_it_is,
    ),
    "Open WebUI, gpt-image-1": Sent(
        {"model": "gpt-image-1", "prompt": PROMPT, "n": 1, "size": "auto"}, whichever_it_is
    ),
    # danny-avila/LibreChat, api/app/clients/tools/structured/DALLE3.js: _call. It reads
    # data[0].url alone, and the picture's kind from the end of its path.
    "LibreChat, DALL-E 3": Sent(
        {
            "model": "dall-e-3",
            "quality": "standard",
            "style": "vivid",
            "size": "1024x1024",
            "prompt": PROMPT,
            "n": 1,
        },
        as_a_link,
    ),
    # The same project's OpenAIImageTools.js: imageGenTool. It reads data[0].b64_json alone.
    "LibreChat, image tools": Sent(
        {
            "model": "gpt-image-1",
            "prompt": PROMPT,
            "n": 1,
            "background": "auto",
            "output_format": "png",
            "quality": "auto",
            "size": "auto",
        },
        from_base64,
    ),
    # lobehub/lobe-chat, packages/model-runtime, createOpenAICompatibleImage: generateByImageMode
    # leaves out a size of "auto".
    "LobeChat, dall-e-3": Sent(
        {
            "model": "dall-e-3",
            "n": 1,
            "response_format": "b64_json",
            "prompt": PROMPT,
            "size": "1024x1024",
        },
        whichever_it_is,
    ),
    "LobeChat, gpt-image-1": Sent(
        {"model": "gpt-image-1", "n": 1, "prompt": PROMPT}, whichever_it_is
    ),
    "LobeChat, sides": Sent(
        {
            "model": "synthetic",
            "n": 1,
            "prompt": PROMPT,
            "width": 1024,
            "height": 1024,
            "seed": 7,
            "steps": 8,
        },
        whichever_it_is,
    ),
    # langgenius/dify-official-plugins, tools/openai/tools/gpt_image_generate.py: _invoke.
    "Dify": Sent({"model": "gpt-image-1", "prompt": PROMPT, "n": 1}, with_its_usage),
    "Dify, all of its fields": Sent(
        {
            "model": "gpt-image-1-mini",
            "prompt": PROMPT,
            "size": "1024x1024",
            "quality": "high",
            "background": "transparent",
            "output_format": "png",
            "moderation": "low",
            "n": 1,
        },
        with_its_usage,
    ),
    # n8n-io/n8n, packages/@n8n/nodes-langchain/nodes/vendors/OpenAi/actions/image/
    # generate.operation.ts: execute.
    "n8n": Sent(
        {"prompt": PROMPT, "model": "dall-e-3", "response_format": "b64_json"}, from_base64
    ),
    "n8n, gpt-image-1": Sent({"prompt": PROMPT, "model": "gpt-image-1"}, from_base64),
    "n8n, links": Sent(
        {
            "prompt": PROMPT,
            "model": "dall-e-3",
            "response_format": "url",
            "quality": "hd",
            "size": "1024x1024",
            "style": "natural",
        },
        as_a_link,
    ),
    # ChatGPTNextWeb/NextChat, app/client/platforms/openai.ts: chat, DalleRequestPayload.
    "NextChat": Sent(
        {
            "model": "dall-e-3",
            "prompt": PROMPT,
            "response_format": "b64_json",
            "n": 1,
            "size": "1024x1024",
            "quality": "standard",
            "style": "vivid",
        },
        whichever_it_is,
    ),
    # CherryHQ/cherry-studio, src/renderer/src/aiCore/legacy/middleware/feat/
    # ImageGenerationMiddleware.ts: what a chat with a model for pictures asks for.
    "Cherry Studio": Sent(
        {"model": "dall-e-3", "prompt": PROMPT, "response_format": "b64_json"}, whichever_it_is
    ),
    "Cherry Studio, gpt-image-1": Sent({"model": "gpt-image-1", "prompt": PROMPT}, whichever_it_is),
}


@pytest.mark.parametrize("sent", APPLICATIONS.values(), ids=APPLICATIONS)
async def test_an_application_shows_the_picture_that_it_asked_for(
    client: httpx.AsyncClient, sent: Sent
) -> None:
    answer = await client.post("/v1/images/generations", json=sent.body)
    assert answer.status_code == 200, answer.text
    assert sent.read(answer.json()) == PROMPT
