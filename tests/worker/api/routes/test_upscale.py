"""A picture is drawn anew, twice as large, in tiles that nobody sees."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.worker.api.routes.test_edits import mask, opened, pixels_in, png, refusal, saved
from tests.worker.api.routes.test_gallery import listed
from tests.worker.api.routes.test_images import events_of
from tests.worker.api.routes.test_uploads import uploaded
from tests.worker.conftest import migrated, ready, serving, settings_in
from tests.worker.jobs.conftest import eventually
from worker.generation.tiling import Axis
from worker.lifecycle import Lifecycle

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
UPSCALE = "/v1/images/upscale"
LARGE = (640, 512)
"""Of the result: more than one tile across."""


def smooth(width: int = 320, height: int = 256) -> bytes:
    down, across = np.mgrid[0:height, 0:width]
    channels = across * 255 // width, down * 255 // height, (across + down) % 256 // 2
    return saved(Image.fromarray(np.dstack(channels).astype(np.uint8)))


@pytest.fixture
async def cell(home: Path) -> AsyncIterator[tuple[Lifecycle, httpx.AsyncClient]]:
    """Its largest tile has 256 × 256 pixels."""
    settings = settings_in(home, max_pixels=256 * 256 * 2, model="synthetic:step_ms=1")
    async with serving(migrated(settings)) as (service, client):
        await ready(service)
        yield service, client


async def upscaled(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post(UPSCALE, data=fields, files={"image": smooth()})


async def test_it_becomes_twice_as_large_and_stays_as_it_was(client: httpx.AsyncClient) -> None:
    answer = await upscaled(client, strength="0.01", seed="3")
    pixels = pixels_in(answer)
    assert answer.json()["size"] == "640x512"
    assert answer.json()["data"][0]["seed"] == 3
    before = Image.open(io.BytesIO(smooth())).resize(LARGE, Image.Resampling.LANCZOS)
    changed = np.abs(pixels.astype(int) - np.asarray(before))
    assert np.median(changed) <= 4
    assert len(answer.json()["data"]) == 1


async def test_tiles_are_rows_that_share_steps(client: httpx.AsyncClient) -> None:
    answer = await upscaled(client, prompt="a fox")
    assert int(answer.headers["X-Batch-Size"]) > 1


async def test_the_gallery_has_one_picture_that_says_what_it_was_drawn_from(
    client: httpx.AsyncClient,
) -> None:
    upload = await uploaded(client, smooth())
    answer = await client.post(UPSCALE, json={"image": upload["id"], "prompt": "a fox", "seed": 5})
    (row,) = await listed(client, 1)
    assert (
        row.items()
        >= {
            "width": 640,
            "height": 512,
            "seed": 5,
            "prompt": "a fox",
            "strength": 0.25,
            "image_sha256": upload["sha256"],
            "drawn_from": {
                "image": upload["id"],
                "mask": None,
                "fit": "upscale",
                "position": None,
            },
        }.items()
    )
    told = opened(answer).info["parameters"]
    assert "Denoising strength: 0.25" in told
    assert upload["sha256"] in told
    again = await client.post(UPSCALE, json={"image": row["id"], "strength": 0.1})
    assert refusal(again)[0] == "image"  # four times as large is too much here


async def test_it_is_one_picture_of_the_day_and_of_the_ledger(
    cell: tuple[Lifecycle, httpx.AsyncClient],
) -> None:
    life, client = cell
    await upscaled(client)
    await life.components.ledger.flush()
    (day,) = (await client.get("/v1/usage")).json()["data"]
    assert (day["images"], day["requests"]) == (1, 1)


async def test_a_stream_tells_the_steps_of_all_tiles(client: httpx.AsyncClient) -> None:
    answer = await upscaled(client, stream="true", steps="8")
    events = events_of(answer.text)
    steps = [event for event in events if "step" in event]
    tiles = [len(Axis.of(side, 256, 16).starts) for side in LARGE]
    assert {event["steps"] for event in steps} == {2 * tiles[0] * tiles[1]}
    done = [event["step"] for event in steps]
    assert done == sorted(done)
    assert done[-1] == steps[-1]["steps"]
    names = [line[7:] for line in answer.text.splitlines() if line.startswith("event: ")]
    assert names[-2:] == ["image_edit.completed", "image_edit.done"]


async def test_a_replay_draws_the_same(client: httpx.AsyncClient) -> None:
    headers = {"X-Request-ID": "0123456789abcdef" * 2}
    files = {"image": smooth()}
    answers = [await client.post(UPSCALE, files=files, headers=headers) for _ in range(2)]
    assert np.array_equal(pixels_in(answers[0]), pixels_in(answers[1]))


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "size": ({"size": "256x256"}, "size", "twice as large"),
    "fit": ({"fit": "extend"}, "fit", "twice as large"),
    "several": ({"n": "2"}, "n", "one picture becomes one"),
    "previews": ({"stream": "true", "partial_images": "1"}, "partial_images", "no previews"),
    "strength": ({"strength": "0"}, "strength", "use more"),
}


async def test_what_has_no_meaning_is_refused(client: httpx.AsyncClient) -> None:
    for name, (fields, param, why) in REFUSED.items():
        told, message = refusal(await upscaled(client, **fields))
        assert (told, why in message) == (param, True), (name, message)


async def test_masks_and_what_becomes_too_large_are_refused(client: httpx.AsyncClient) -> None:
    files = {"image": png(), "mask": mask()}
    assert refusal(await client.post(UPSCALE, files=files))[0] == "mask"
    large = {"image": png((512, 512))}
    param, message = refusal(await client.post(UPSCALE, files=large))
    assert (param, "512×512 would become 1024×1024" in message) == ("image", True)


async def test_others_are_drawn_between_its_tiles(home: Path) -> None:
    settings = settings_in(
        home, max_pixels=256 * 256 * 2, max_batch=1, model="synthetic:step_ms=40"
    )
    async with serving(migrated(settings)) as (service, client):
        await ready(service)
        large = asyncio.create_task(upscaled(client, strength="1"))  # some seconds of steps
        await eventually(lambda: service.model.engine.state().running == 1)
        small = {"prompt": "a", "size": "64x64", "steps": 1}
        stranger = {"X-Real-IP": "192.0.2.7"}
        answer = await client.post("/v1/images/generations", json=small, headers=stranger)
        assert answer.status_code == 200
        assert not large.done()
        assert (await large).status_code == 200
