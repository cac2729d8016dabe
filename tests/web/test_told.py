"""What the page tells is true, of each picture, and in the language of its reader."""

import re
import time
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.web.conftest import OpenPage, forgive
from tests.web.fake_cell import FakeCell, Refuse
from tests.web.test_draw import draw, pass_until_said
from tests.web.test_library import stored

pytestmark = pytest.mark.browser


def test_each_picture_has_a_place_and_a_wait_of_its_own(
    cell: FakeCell, open_page: OpenPage
) -> None:
    cell.position, cell.wait_s, cell.picture_s, cell.hold_before_step = 1, 3600, 3600, 0
    page = open_page()
    draw(page, "a hill", n=3)
    cards = page.locator(".card .status")
    told = [(1, 2), (2, 3), (3, 4)]
    each = [re.compile(rf"{ahead} ahead in the queue.*about {hours} h") for ahead, hours in told]
    expect(cards).to_have_text(each)
    cell.hold_at_picture, cell.hold_before_step = 1, 2
    expect(cards).to_contain_text(["Step 2 of 4", "Step 1 of 4", "Step 1 of 4"])
    cell.release()
    expect(page.locator("[data-face=picture]")).to_have_count(3)


def test_who_waits_for_a_picture_of_the_same_request_is_told_so(
    cell: FakeCell, open_page: OpenPage
) -> None:
    cell.hold_at_picture, cell.hold_before_step = 1, 1
    page = open_page()
    draw(page, "a hill", n=3)
    cards = page.locator(".card .status")
    expect(cards).to_contain_text(["Step 1 of 4", "Next in line", "1 ahead in the queue"])
    cell.release()
    expect(page.locator("[data-face=picture]")).to_have_count(3)


def daily_limit() -> Refuse:
    numbers = {"drawn": 198, "most": 200, "asked": 3, "resets_at": time.time() + 3600}
    details: dict[str, Any] = {"reason": "images_per_day", **numbers}
    told = {"code": "rate_limit_exceeded", "details": details, "should_retry": False}
    return Refuse(429, "Key 'a' may draw 200 pictures a day.", retry_after_s=3600, **told)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("locale", "told"),
    [
        ("en-GB", "198 of 200 pictures today, and 3 more are wanted; again at"),
        ("zh-CN", "今日已画 198 / 200 张，还需要 3 张；"),
    ],
)
def test_the_limit_of_a_day_is_told_with_its_numbers_and_its_end(
    cell: FakeCell, open_page: OpenPage, complaints: list[str], locale: str, told: str
) -> None:
    page = open_page(locale=locale)
    cell.faults.append(daily_limit())
    page.locator("#prompt").fill("a hill")
    page.locator("#draw").click()
    expect(page.locator(".card")).to_contain_text(told)
    page.locator(".card .choices button").first.click()  # perhaps an operator has raised it
    expect(page.locator("[data-face=picture]")).to_have_count(1)
    assert len(cell.requests) == 2
    forgive(page, complaints, "429")


def test_a_limit_of_requests_at_a_time_is_not_called_busy_workers(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page(clock_stands=True)
    limit = Refuse(
        429, "1 at a time.", retry_after_s=9, code="rate_limit_exceeded", should_retry=True
    )
    cell.faults.append(limit)
    draw(page, "a hill")
    pass_until_said(page, "Too many at a time")
    pass_until_said(page, "tries again in 9 s")
    forgive(page, complaints, "429")


def test_refusals_are_told_by_their_code_in_chinese(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page(locale="zh-CN")
    cell.faults.append(
        Refuse(422, "prompt: it ended two workers.", "prompt", code="request_refused")
    )
    page.locator("#prompt").fill("a hill")
    page.locator("#draw").click()
    expect(page.locator("#error-prompt")).to_have_text("模型拒绝了此请求，请修改提示词或尺寸。")
    page.locator("#modes label").nth(1).click()
    page.locator("#template").fill("一张 {红色|蓝色 的海报")
    expect(page.locator("#error-template")).to_contain_text("第 4 个字符：这个 { 没有闭合")
    forgive(page, complaints, "422")
    forgive(page, complaints, "400")


def test_the_viewer_walks_beyond_what_is_loaded_and_says_that_there_is_more(
    cell: FakeCell, open_page: OpenPage
) -> None:
    stored(cell, *(f"hill {k}" for k in range(70)))
    page = open_page()
    expect(page.locator("#summary")).to_have_text("60+ pictures")
    page.locator("#grid .open").nth(59).dispatch_event("click")
    expect(page.locator("#viewer-place")).to_have_text("60 / 60+")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-place")).to_have_text("61 / 70")
    expect(page.locator("#viewer-prompt")).to_have_text("hill 9")


def test_a_drawing_that_is_begun_far_down_the_page_is_seen(
    cell: FakeCell, open_page: OpenPage
) -> None:
    stored(cell, *(f"hill {k}" for k in range(60)))
    page = open_page()
    expect(page.locator("#grid .card")).to_have_count(60)
    page.evaluate("scrollTo(0, 1500)")
    cell.hold_before_step = 1
    draw(page, "a lake")
    expect(page.locator(".card", has_text="a lake").locator(".status")).to_be_in_viewport(ratio=1)


def test_a_tile_that_is_dragged_out_is_the_original(cell: FakeCell, open_page: OpenPage) -> None:
    stored(cell, "a fox, at dawn")
    page = open_page()
    dragged = page.locator("#grid .open img").evaluate(
        """(image) => {
            const dataTransfer = new DataTransfer();
            image.dispatchEvent(new DragEvent("dragstart", { dataTransfer, bubbles: true }));
            return ["text/uri-list", "DownloadURL"].map((kind) => dataTransfer.getData(kind));
        }"""
    )
    url = f"{cell.url}/v1/images/{900:032x}-0"
    assert dragged == [url, f"image/png:a-fox-at-dawn-0.png:{url}?download=1"]


def test_focus_has_a_colour_of_its_own_and_pictures_an_edge(
    cell: FakeCell, open_page: OpenPage
) -> None:
    stored(cell, "a black square")
    page = open_page()
    for theme in ("dark", "light"):
        page.evaluate("(theme) => document.documentElement.dataset.theme = theme", theme)
        page.locator("#prompt").focus()
        focus, *others = page.evaluate(
            """() => {
                const colour = (value) => {
                    const probe = document.body.appendChild(document.createElement("i"));
                    probe.style.color = value;
                    const shown = getComputedStyle(probe).color;
                    probe.remove();
                    return shown;
                };
                const focus = getComputedStyle(document.querySelector("#prompt")).outlineColor;
                return [focus, colour("var(--bad)"), colour("var(--accent)")];
            }"""
        )
        assert focus not in others
        edge = "e => getComputedStyle(e, '::after').boxShadow"
        assert page.locator("#grid .open").evaluate(edge).endswith("0px 0px 0px 1px inset")


def test_all_empty_lists_of_a_template_are_named(open_page: OpenPage) -> None:
    page = open_page(locale="zh-CN")
    page.locator("#modes label").nth(1).click()
    page.locator("#template").fill("{颜色}的{形状}")
    page.locator("#draw").click()
    expect(page.locator("#error-template")).to_have_text("请为 {颜色}、{形状} 至少填写一个值。")
