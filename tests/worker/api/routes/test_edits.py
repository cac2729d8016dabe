"""Drawings that go on from a picture, as they are asked for over HTTP."""

import asyncio
import base64
import io
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.worker.api.middleware.test_access import Keyed, keyed  # noqa: F401 — a fixture
from tests.worker.api.routes.test_gallery import file_of, listed
from tests.worker.api.routes.test_images import events_of
from tests.worker.api.test_resuming import noted
from tests.worker.conftest import migrated, ready, serving, settings_in
from tests.worker.storage.conftest import picture
from worker.models.synthetic import text_of
from worker.storage import gallery
from worker.storage.keys import Role
from worker.types import Pixels
from worker.uploads.sources import MAX_WAITING, READ_AT_ONCE

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
EDITS, VARIATIONS = "/v1/images/edits", "/v1/images/variations"
RED = (200, 30, 40)


def png(size: tuple[int, int] = (128, 96), colour: tuple[int, ...] = RED) -> bytes:
    return saved(Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour))


def saved(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def mask(size: tuple[int, int] = (128, 96), grey: bool = False) -> bytes:
    """The right half is drawn anew."""
    changed = Image.new("L", size, 0)
    changed.paste(255, (size[0] // 2, 0, *size))
    if grey:
        return saved(changed)
    image = Image.new("RGBA", size, (0, 0, 0, 255))
    image.putalpha(changed.point(lambda value: 255 - value))
    return saved(image)


def pixels_in(answer: httpx.Response) -> Pixels:
    assert answer.status_code == 200, answer.text
    return np.asarray(opened(answer))


def opened(answer: httpx.Response) -> Any:
    return Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))


async def sent(client: httpx.AsyncClient, fields: dict[str, Any], **files: bytes) -> httpx.Response:
    return await client.post(EDITS, data=fields, files=files)


def refusal(answer: httpx.Response) -> tuple[str | None, str]:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    return error["param"], error["message"]


async def test_a_picture_is_drawn_from_at_its_own_size(client: httpx.AsyncClient) -> None:
    answer = await sent(client, {"prompt": "a fox", "seed": "7", "strength": "0.25"}, image=png())
    pixels = pixels_in(answer)
    assert answer.json()["size"] == "128x96"
    assert pixels.shape == (96, 128, 3)
    assert text_of(pixels) == "a fox|7|2"  # of 8 steps
    assert np.abs(pixels[1:].astype(int) - RED).max() < 70  # the colour is laid over it thinly


async def test_strength_is_weak_unless_said_and_whole_with_a_mask(
    client: httpx.AsyncClient,
) -> None:
    whole = pixels_in(await sent(client, {"prompt": "a", "seed": "7"}, image=png()))
    masked = await sent(client, {"prompt": "a", "seed": "7"}, image=png(), mask=mask())
    assert text_of(whole) == "a|7|5"
    assert (
        "Denoising strength: 0.6"
        in opened(await sent(client, {"prompt": "a"}, image=png())).info["parameters"]
    )
    assert "Denoising strength" not in opened(masked).info["parameters"]


@pytest.mark.parametrize("grey", [False, True], ids=["transparent", "white"])
async def test_outside_of_the_mask_the_file_has_the_same_values(
    client: httpx.AsyncClient, grey: bool
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    answer = await sent(
        client, {"prompt": "a"}, image=saved(Image.fromarray(noise)), mask=mask(grey=grey)
    )
    pixels = pixels_in(answer)
    assert np.array_equal(pixels[:, :64], noise[:, :64])
    assert len(np.unique(pixels[:, 64:].reshape(-1, 3), axis=0)) < 9


async def test_without_a_mask_what_is_transparent_is_drawn(client: httpx.AsyncClient) -> None:
    image = Image.new("RGBA", (128, 96), (*RED, 255))
    image.paste((0, 0, 0, 0), (64, 0, 128, 96))
    pixels = pixels_in(await sent(client, {"prompt": "a"}, image=saved(image)))
    assert (pixels[:, :64] == RED).all()
    assert (pixels[1:, 64:] != RED).any()


async def test_a_larger_size_covers_and_an_extended_picture_stays(
    client: httpx.AsyncClient,
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    file = saved(Image.fromarray(noise))
    cover = await sent(client, {"prompt": "a", "size": "256x256"}, image=file)
    extend = {"prompt": "a", "size": "256x128", "fit": "extend"}
    middle = pixels_in(await sent(client, extend, image=file))
    corner = pixels_in(await sent(client, {**extend, "position": "100,32"}, image=file))
    assert pixels_in(cover).shape == (256, 256, 3)
    assert np.array_equal(middle[16:112, 64:192], noise)
    assert np.array_equal(corner[32:128, 100:228], noise)
    assert not np.array_equal(corner[:96, :128], noise)


async def test_a_picture_of_the_gallery_is_named_by_its_id(
    client: httpx.AsyncClient, home: Path
) -> None:
    await client.post("/v1/images/generations", json={"prompt": "a fox", "seed": 1})
    (first,) = await listed(client, 1)
    body = {"prompt": "a cat", "image": first["id"], "strength": 0.01, "seed": 2}
    pixels = pixels_in(await client.post(EDITS, json=body))
    before = np.asarray(Image.open(io.BytesIO(file_of(home, await client.get(first["url"])))))
    assert np.abs(pixels[1:].astype(int) - before[1:]).max() <= 4
    varied = pixels_in(await client.post(VARIATIONS, json={"image": first["id"], "seed": 3}))
    assert text_of(varied) == "a fox|3|5"
    second = await listed(client, 3)
    assert {each["strength"] for each in second} == {1.0, 0.01, 0.6}


async def test_a_variation_needs_no_prompt(client: httpx.AsyncClient) -> None:
    answer = await client.post(VARIATIONS, data={"n": "2", "seed": "5"}, files={"image": png()})
    assert [each["seed"] for each in answer.json()["data"]] == [5, 6]
    assert text_of(pixels_in(answer)) == "|5|5"


async def test_the_file_its_metadata_and_the_audit_log_name_the_picture(
    home: Path,
) -> None:
    async with serving(migrated(settings_in(home))) as (service, client):
        await ready(service)
        told = opened(await sent(client, {"prompt": "a"}, image=png(), mask=mask()))
    lines = [
        json.loads(line)
        for path in (home / "audit").iterdir()
        for line in path.read_text().splitlines()
    ]
    (line,) = [line for line in lines if line["event"] == "drew"]
    for name in ("image_sha256", "mask_sha256"):
        assert len(line[name]) == 64
        assert line[name] in told.info["parameters"]


async def test_the_same_request_again_is_the_same_picture(client: httpx.AsyncClient) -> None:
    fields, headers = {"prompt": "a"}, {"X-Request-ID": "0123456789abcdef" * 2}
    answers = [
        await client.post(EDITS, data=fields, files={"image": png()}, headers=headers)
        for _ in range(2)
    ]
    assert np.array_equal(pixels_in(answers[0]), pixels_in(answers[1]))


@pytest.mark.parametrize("route", [EDITS, VARIATIONS])
async def test_a_stream_ends_with_the_picture(client: httpx.AsyncClient, route: str) -> None:
    fields = {"prompt": "a", "stream": "true", "partial_images": "1"}
    answer = await client.post(route, data=fields, files={"image": png()})
    names = [line[7:] for line in answer.text.splitlines() if line.startswith("event: ")]
    assert names[0] == "image_edit.queued"
    assert names[-2:] == ["image_edit.completed", "image_edit.done"]
    assert "image_edit.partial_image" in names


REFUSED: dict[str, tuple[dict[str, Any], dict[str, bytes], str, str]] = {
    "no picture": ({"prompt": "a"}, {"mask": mask()}, "image", "missing"),
    "no prompt": ({}, {"image": png()}, "prompt", "missing: say what to draw"),
    "both": ({"prompt": "a", "image": f"{'0' * 32}-0"}, {"image": png()}, "image", "leave one"),
    "address": ({"prompt": "a", "image": "http://169.254.0.1/"}, {}, "image", "nothing is fetched"),
    "no id": ({"prompt": "a", "image": "a.png"}, {}, "image", "send its id, or a file"),
    "no file": ({"prompt": "a"}, {"image": b"MZ"}, "image", "not a PNG, JPEG or WebP"),
    "no mask": ({"prompt": "a"}, {"image": png(), "mask": b"MZ"}, "mask", "not a PNG"),
    "other mask": ({"prompt": "a"}, {"image": png(), "mask": mask((64, 64))}, "mask", "64×64"),
    "black mask": ({"prompt": "a"}, {"image": png(), "mask": png()}, "mask", "nothing of it"),
    "markup": ({"prompt": "a"}, {"image": png(), "markup": png()}, "markup", "image and mask"),
    "strength 0": ({"prompt": "a", "strength": "0"}, {"image": png()}, "strength", "use more"),
    "strength 2": ({"prompt": "a", "strength": "2"}, {"image": png()}, "strength", "0 to 1"),
    "no number": ({"prompt": "a", "n": "two"}, {"image": png()}, "n", "a whole number, not text"),
    "unknown": ({"prompt": "a", "stepps": "2"}, {"image": png()}, "stepps", "did you mean steps"),
    "size": ({"prompt": "a", "size": "100x100"}, {"image": png()}, "size", "multiple of 16"),
    "extend": ({"prompt": "a", "fit": "extend"}, {"image": png()}, "size", "say how large"),
    "smaller": (
        {"prompt": "a", "fit": "extend", "size": "64x64"},
        {"image": png()},
        "size",
        "64×64 is smaller than the image, 128×96",
    ),
    "position": ({"prompt": "a", "position": "1,1"}, {"image": png()}, "position", "fit: extend"),
}


@pytest.mark.parametrize(("fields", "files", "param", "why"), REFUSED.values(), ids=REFUSED)
async def test_what_is_wrong_is_named(
    client: httpx.AsyncClient,
    fields: dict[str, Any],
    files: dict[str, bytes],
    param: str,
    why: str,
) -> None:
    if files:
        answer = await sent(client, fields, **files)
    else:
        answer = await client.post(EDITS, json=fields)
    told, message = refusal(answer)
    assert (told, why in message) == (param, True), message


async def test_several_pictures_are_refused_by_name(client: httpx.AsyncClient) -> None:
    several = [("image[]", ("a.png", png(), "image/png"))] * 2
    answer = await client.post(EDITS, data={"prompt": "a"}, files=several)
    assert refusal(answer) == ("image", "image: 2 of them: one is taken; send one.")
    one = await client.post(EDITS, data={"prompt": "a"}, files=several[:1])
    assert one.status_code == 200


async def test_a_body_that_is_no_form_is_refused(client: httpx.AsyncClient) -> None:
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x"):
        answer = await client.post(EDITS, content=b"--y\r\n", headers={"Content-Type": kind})
        assert answer.status_code == 400, answer.text
    answer = await client.post(EDITS, content=b"", headers={"Content-Type": "image/png"})
    assert answer.status_code == 415


async def test_a_body_that_is_too_large_is_refused_by_its_length(
    client: httpx.AsyncClient,
) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": str(1 << 30)}
    assert (await client.post(EDITS, content=b"x", headers=headers)).status_code == 413


async def test_a_part_of_a_picture_of_the_gallery_is_drawn_anew(
    client: httpx.AsyncClient, home: Path
) -> None:
    """As a page does it that has no file of it, but a mask."""
    await client.post(
        "/v1/images/generations", json={"prompt": "a fox", "seed": 1, "size": "128x96"}
    )
    (first,) = await listed(client, 1)
    before = np.asarray(Image.open(io.BytesIO(file_of(home, await client.get(first["url"])))))
    answer = await sent(client, {"prompt": "a cat", "image": first["id"]}, mask=mask())
    pixels = pixels_in(answer)
    assert np.array_equal(pixels[:, :64], before[:, :64])
    assert (pixels[1:, 64:] != before[1:, 64:]).any()


@pytest.mark.parametrize("role", ["user", "ops"])
async def test_pictures_are_their_owners_only(
    keyed: Keyed,  # noqa: F811
    role: Role,
) -> None:
    """Whoever may see everybody's draws from none of them either."""
    ada, as_ada = await keyed.make("ada")
    _, as_eve = await keyed.make("eve", role=role)
    stored = picture("a", owner=ada.id)
    components = keyed.service.components
    await components.database.run(lambda c: gallery.insert(c, stored))
    components.images.save(stored.name, png())
    for token, status in ((as_ada, 200), (as_eve, 404)):
        answer = await keyed.client.post(
            EDITS,
            json={"prompt": "a cat", "image": stored.id},
            headers={"Authorization": f"Bearer {token}"},
        )
        assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == "image"


@pytest.mark.parametrize(("colour", "resumed"), [(RED, True), ((1, 2, 3), False)])
async def test_a_stream_that_was_cut_goes_on_with_the_same_picture_alone(
    client: httpx.AsyncClient,
    caplog: pytest.LogCaptureFixture,
    colour: tuple[int, int, int],
    resumed: bool,
) -> None:
    fields = {"prompt": "a", "stream": "true", "seed": "7"}
    first = events_of((await sent(client, fields, image=png())).text)[0]
    again = {**fields, "resume": first["resume"]}
    with caplog.at_level("INFO"):
        assert (await sent(client, again, image=png(colour=colour))).status_code == 200
    note = noted(caplog)
    assert ("resumed_after_s" in note, note.get("resume")) == (
        resumed,
        None if resumed else "ignored",
    )


async def test_another_worker_draws_the_same(home: Path) -> None:
    """As nginx sends it there, with the id of the first attempt, where one dies."""
    headers, pictures = {"X-Request-ID": "0123456789abcdef" * 2}, []
    for name in ("w1", "w2"):
        async with serving(migrated(settings_in(home / name))) as (service, client):
            await ready(service)
            files = {"image": png(), "mask": mask()}
            answer = await client.post(EDITS, data={"prompt": "a"}, files=files, headers=headers)
            pictures.append(answer.json()["data"])
    assert pictures[0] == pictures[1]


async def test_where_too_many_are_read_another_worker_is_asked(home: Path) -> None:
    async with serving(migrated(settings_in(home))) as (service, client), AsyncExitStack() as stack:
        await ready(service)
        reading = service.components.sources.reading
        for _ in range(READ_AT_ONCE):
            await stack.enter_async_context(reading())
        waiting = [
            asyncio.create_task(stack.enter_async_context(reading())) for _ in range(MAX_WAITING)
        ]
        answer = await sent(client, {"prompt": "a"}, image=png())
        for task in waiting:
            task.cancel()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert int(answer.headers["Retry-After"]) >= 1
