"""What people and programs use, through nginx: the official SDK and the page in Chromium."""

import re
from collections.abc import Iterator

import openai
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from loadtest import faults
from loadtest.traffic import check_picture
from tests.cluster.conftest import RunningCell
from tests.deploy.processes import wait_until
from tests.web.conftest import DESKTOP, chromium, complaints, forgive, watch

__all__ = ["chromium", "complaints"]

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.xdist_group("slow_cell")]


@pytest.fixture
def cell(slow_cell: RunningCell) -> RunningCell:
    return slow_cell


@pytest.fixture
def sdk(cell: RunningCell) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{cell.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_sdk_generates(sdk: openai.OpenAI) -> None:
    answer = sdk.images.generate(prompt="an SDK", n=2, size="512x512")
    assert answer.data is not None
    body = {"prompt": "an SDK", "size": "512x512"}
    assert [check_picture(i.model_dump(), body, synthetic=True) for i in answer.data] == ["", ""]


def test_sdk_streams(sdk: openai.OpenAI) -> None:
    stream = sdk.images.generate(prompt="a stream", size="256x256", stream=True, partial_images=2)
    events = {event.type: event for event in stream}
    assert "image_generation.partial_image" in events
    picture = events["image_generation.completed"].model_dump()
    body = {"prompt": "a stream", "size": "256x256"}
    assert check_picture(picture, body, synthetic=True) == ""


def test_sdk_is_told_what_is_wrong(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        sdk.images.generate(prompt="odd", size="250x250")
    assert (raised.value.param, raised.value.type) == ("size", "invalid_request_error")


@pytest.fixture
def page(chromium: Browser, cell: RunningCell, complaints: list[str]) -> Iterator[Page]:
    context = chromium.new_context(locale="zh-CN", color_scheme="light", **DESKTOP)  # type: ignore[arg-type]
    context.set_default_timeout(30_000)
    opened = context.new_page()
    watch(opened, cell.url, complaints)
    opened.goto(cell.url)
    yield opened
    context.close()


def picture_of(page: Page, prompt: str) -> Locator:
    """Its finished card; the gallery shows pictures of other tests as well."""
    return page.locator("[data-face=picture]").filter(has_text=re.compile(f"^\\s*{prompt}"))


@pytest.mark.browser
def test_page_draws_through_nginx(page: Page) -> None:
    page.locator("#prompt").fill("一座山\na hill")
    page.locator("#draw").click()
    expect(page.locator(".card").first).to_contain_text(re.compile(r"第 \d / 8 步"), timeout=15_000)
    for prompt in ("一座山", "a hill"):
        expect(picture_of(page, prompt)).to_have_count(1, timeout=30_000)


@pytest.mark.browser
def test_page_survives_a_worker_killed_while_drawing(
    page: Page, cell: RunningCell, complaints: list[str]
) -> None:
    page.locator("#advanced summary").click()
    page.locator("#steps").fill("40")  # ten seconds: it is drawn still when the guard has seen it
    page.locator("#prompt").fill("before the kill")
    page.locator("#draw").click()
    expect(page.locator(".card").first).to_contain_text(re.compile(r"第 \d+ / 40 步"))
    victim = wait_until(
        lambda: next((w["name"] for w in cell.state()["workers"] if w["running"]), ""), "drawing"
    )
    faults.kill(cell, victim)
    expect(picture_of(page, "before the kill")).to_have_count(1, timeout=60_000)
    wait_until(cell.is_whole, "every worker in the pool")
    forgive(page, complaints, "ERR_INCOMPLETE_CHUNKED_ENCODING")
