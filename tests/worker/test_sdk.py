"""The official openai client against a real worker process."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from tests.worker.processes import worker
from worker.models.synthetic import text_of
from worker.types import Pixels


@pytest.fixture
def sdk(home: Path) -> Iterator[openai.OpenAI]:
    with worker(home, model="synthetic:step_ms=20") as started:
        started.wait_ready()
        with (
            httpx2.Client(transport=httpx2.HTTPTransport(uds=str(started.socket))) as http,
            openai.OpenAI(
                api_key="none", base_url="http://cell/v1", http_client=http, max_retries=0
            ) as client,
        ):
            yield client


def text_in(b64: str | None) -> str:
    return text_of(np.asarray(Image.open(io.BytesIO(base64.b64decode(b64 or "")))))


def test_sdk_generates(sdk: openai.OpenAI) -> None:
    answer = sdk.images.generate(prompt="a fox", n=2, size="256x256", extra_body={"seed": 4})
    assert answer.data is not None
    assert [text_in(image.b64_json) for image in answer.data] == ["a fox|4|8", "a fox|5|8"]
    assert (answer.size, answer.output_format) == ("256x256", "png")


def test_sdk_streams_previews_and_the_picture(sdk: openai.OpenAI) -> None:
    stream = sdk.images.generate(
        prompt="a fox", stream=True, partial_images=2, extra_body={"seed": 4}
    )
    events = [event for event in stream if event.type.endswith(("partial_image", "completed"))]
    assert [event.type.rpartition(".")[2] for event in events] == [
        "partial_image",
        "partial_image",
        "completed",
    ]
    assert isinstance(events[-1], openai.types.ImageGenCompletedEvent)
    assert text_in(events[-1].b64_json) == "a fox|4|8"
    assert events[-1].usage.total_tokens == 0


def test_sdk_that_gives_up_and_asks_again_gets_what_was_drawn(sdk: openai.OpenAI) -> None:
    """Its retries say what they are; a proxy that gives up makes them as its own deadline does."""
    hasty = sdk.with_options(timeout=0.5, max_retries=8)
    answer = hasty.images.with_raw_response.generate(
        prompt="a fox", size="256x256", extra_body={"steps": 50}
    )
    first = answer.headers["X-Replay-Of"]
    drawn = answer.parse().data
    assert answer.retries_taken > 0
    assert drawn is not None
    assert text_in(drawn[0].b64_json) == f"a fox|{int(first[:8], 16)}|50"


def test_sdk_raises_its_own_errors(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="multiple of 16") as caught:
        sdk.images.generate(prompt="a", size="500x500")
    assert (caught.value.param, caught.value.code) == ("size", "invalid_value")
    with pytest.raises(openai.NotFoundError, match="not served here"):
        sdk.images.generate(prompt="a", model="dall-e-4")


def test_sdk_raises_the_error_of_a_stream(sdk: openai.OpenAI) -> None:
    stream = sdk.images.generate(prompt="fault:error", stream=True)
    with pytest.raises(openai.APIError, match="failed"):
        list(stream)


def test_sdk_lists_the_model(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()][:2] == ["synthetic", "dall-e-2"]
    assert sdk.models.retrieve("synthetic").owned_by == "zimage-cluster"


def picture(mode: str, colour: tuple[int, ...]) -> tuple[str, bytes, str]:
    file = io.BytesIO()
    image = Image.new(mode, (128, 64), colour)
    if mode == "RGBA":  # the right half is transparent
        image.paste((0, 0, 0, 0), (64, 0, 128, 64))
    image.save(file, "png")
    return "a.png", file.getvalue(), "image/png"


def pixels_in(b64: str | None) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64 or ""))))


def test_sdk_edits_a_part_of_a_picture(sdk: openai.OpenAI) -> None:
    answer = sdk.images.edit(
        image=picture("RGB", (200, 30, 40)),
        mask=picture("RGBA", (0, 0, 0, 255)),
        prompt="a fox",
        n=2,
        quality="high",
        input_fidelity="high",
        extra_body={"seed": 4, "steps": 6},
    )
    assert answer.data is not None
    assert (len(answer.data), answer.size) == (2, "128x64")
    for image in answer.data:
        pixels = pixels_in(image.b64_json)
        assert (pixels[:, :64] == (200, 30, 40)).all()
        assert (pixels[1:, 64:] != (200, 30, 40)).any()


def test_sdk_edits_a_list_of_one_picture(sdk: openai.OpenAI) -> None:
    answer = sdk.images.edit(
        image=[picture("RGB", (9, 9, 9))], prompt="a fox", extra_body={"seed": 4, "strength": 0.5}
    )
    assert answer.data is not None
    assert text_in(answer.data[0].b64_json) == "a fox|4|4"


def test_sdk_streams_an_edit(sdk: openai.OpenAI) -> None:
    stream = sdk.images.edit(
        image=picture("RGB", (9, 9, 9)),
        prompt="a fox",
        stream=True,
        partial_images=1,
        extra_body={"seed": 4},
    )
    events = [event for event in stream if event.type.endswith(("partial_image", "completed"))]
    assert isinstance(events[0], openai.types.ImageEditPartialImageEvent)
    assert isinstance(events[-1], openai.types.ImageEditCompletedEvent)
    assert text_in(events[-1].b64_json) == "a fox|4|5"


def test_sdk_makes_variations(sdk: openai.OpenAI) -> None:
    with pytest.warns(DeprecationWarning, match="deprecated"):  # of OpenAI's own models
        answer = sdk.images.create_variation(
            image=picture("RGB", (9, 9, 9)), n=2, size="256x256", extra_body={"seed": 4}
        )
    assert answer.data is not None
    assert [text_in(image.b64_json) for image in answer.data] == ["|4|5", "|5|5"]
    assert pixels_in(answer.data[0].b64_json).shape == (256, 256, 3)
