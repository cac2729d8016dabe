"""A part of a picture is painted over in a real Chromium, and drawn anew by the shipped model."""

import io
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from tests.cluster.conftest import RunningCell, started
from tests.cluster.test_page import DEADLINE_MS, opened
from tests.web.conftest import chromium
from tests.web.test_library import drop

__all__ = ["chromium"]

pytestmark = [pytest.mark.cluster, pytest.mark.browser, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cell() -> Iterator[RunningCell]:
    with started(model="tiny", workers=1, step_allowance_s=20.0) as running:
        yield running


def meadow() -> np.ndarray:
    """Every value of it differs from its neighbours: what is scaled or packed lossily shows."""
    noise = np.random.default_rng(7).integers(0, 60, (256, 256, 3), np.uint8)
    green: np.ndarray = np.array([40, 120, 60], np.uint8) + noise
    return green


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def test_outside_of_what_is_painted_each_value_stays(cell: RunningCell, chromium: Browser) -> None:
    page = opened(chromium, cell)
    before = meadow()
    drop(page, png(before))
    page.get_by_role("button", name="Paint a part").click()
    canvas = page.locator("#mask-canvas")
    expect(canvas).to_be_focused()
    box = canvas.bounding_box()
    assert box
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 4, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 3 / 4, middle, steps=5)
    page.mouse.up()
    page.get_by_role("button", name="Done").click()
    page.locator("#prompt").fill("a large red circle on a white background")
    page.locator("#draw").click()
    expect(page.locator("#grid [data-face=picture]")).to_have_count(1, timeout=DEADLINE_MS)
    with httpx.Client(base_url=cell.url, timeout=60) as client:
        (picture,) = client.get("/v1/images").json()["data"]
        file = client.get(picture["url"]).content
    after = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    # The brush is 25.6 pixels wide.
    stays = np.ones((256, 256), bool)
    stays[128 - 15 : 128 + 15, 64 - 15 : 192 + 15] = False
    assert (after[stays] == before[stays]).all()
    drawn = np.abs(after.astype(int) - before)[128 - 10 : 128 + 10, 64:192]
    assert drawn.mean() > 30
