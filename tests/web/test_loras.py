"""Adapters on the page: chosen with their strengths, kept with pictures, and missed by name."""

from typing import Any

import pytest
from playwright.sync_api import expect

from tests.web.conftest import PHONE, OpenPage, forgive
from tests.web.fake_cell import FakeCell, Refuse
from tests.web.test_draw import draw
from tests.web.test_page import AXE, RUN

pytestmark = pytest.mark.browser

SHA256 = "a" * 64
SIX = dict.fromkeys(("ink", "night", "paper", "poster", "stars", "wash"), SHA256)
PICTURE = "f" * 32 + "-0"


def drawn_with(cell: FakeCell, *loras: dict[str, Any]) -> None:
    """A picture of the gallery."""
    body = {"prompt": "a fox", "size": "64x64", "lora": list(loras)}
    cell.store.keep(PICTURE, body, 5, 8)


def test_styles_are_chosen_by_keys_alone_and_go_with_all_that_is_drawn(
    cell: FakeCell, open_page: OpenPage
) -> None:
    cell.loras = SIX
    page = open_page()
    keys, add = page.keyboard, page.locator("#lora-add summary")
    for name in ("stars", "ink", "night", "paper"):
        add.press("Enter")
        page.locator("#lora-list").get_by_role("button", name=name).press("Enter")
        expect(page.get_by_label(f"Strength of {name}")).to_be_focused()
    expect(add).to_be_hidden()  # four are all that a drawing may have
    page.evaluate(AXE)
    assert page.evaluate(RUN) == []
    for name in ("night", "paper"):
        page.get_by_role("button", name=f"Remove {name}").press("Enter")
    expect(page.get_by_role("button", name="Remove ink")).to_be_focused()
    page.get_by_label("Strength of stars").focus()
    keys.press("ArrowLeft")
    keys.press("ArrowLeft")
    page.reload()
    expect(add).to_be_visible()
    draw(page, "a hill")
    expect(page.locator("[data-face=picture]")).to_have_count(1)
    chosen = [{"name": "stars", "scale": 0.9}, {"name": "ink", "scale": 1}]
    page.locator("#grid .open").click()
    expect(page.locator("#viewer-meta")).to_contain_text("styles: stars 0.9 and ink 1")
    keys.press("m")
    expect(page.locator("[data-face=picture]")).to_have_count(5)
    draw(page, "a lake", n=11)
    expect(page.locator("#job-grid .card")).to_have_count(11)
    sent = [*cell.requests, *cell.store.bodies]
    assert [body["lora"] for body in sent] == [chosen] * 3
    page.get_by_role("radio", name="Template").check()
    page.locator("#template").fill("a {red|blue} hill")
    expect(page.locator("#draw-label")).to_have_text("Draw 22 pictures")
    page.locator("#draw").click()
    expect(page.locator("#job-grid .card")).to_have_count(22)
    assert cell.store.bodies[-1]["lora"] == chosen


@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
def test_a_style_that_is_gone_or_another_is_told(
    cell: FakeCell, open_page: OpenPage, locale: str
) -> None:
    cell.loras = SIX
    drawn_with(cell, {"name": "old", "scale": 0.5}, {"name": "ink", "scale": 3})
    page = open_page(locale=locale, **PHONE)
    page.locator("#grid .open").tap()
    page.keyboard.press("r")
    chips = page.locator("#lora-chips li")
    english = locale == "en-GB"
    told = (
        ["No longer available", "The file has changed"] if english else ["已不存在", "文件已更换"]
    )
    expect(chips).to_contain_text(told)
    expect(chips.nth(1)).to_contain_text("ink3")
    page.evaluate(AXE)
    assert page.evaluate(RUN) == []
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.locator("#draw").tap()
    expect(page.locator("#error-lora")).to_contain_text("old")
    assert cell.requests == []
    chips.first.get_by_role("button").tap()
    expect(page.locator("#error-lora")).to_be_empty()
    page.locator("#draw").tap()
    expect(page.locator("[data-face=picture]")).to_have_count(2)
    assert cell.requests[0]["lora"] == [{"name": "ink", "scale": 3}]


def test_a_style_that_goes_while_the_page_is_open_is_told(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    cell.loras = dict.fromkeys([*SIX, *(f"more-{k}" for k in range(9))], SHA256)
    page = open_page()
    page.locator("#lora-add summary").click()
    page.get_by_label("Find a style").fill("ink")
    page.keyboard.press("Enter")
    expect(page.locator("#lora-chips")).to_contain_text("ink")
    cell.loras = {"night": SHA256}
    cell.faults.append(Refuse(400, "There is no adapter.", param="lora", code="unknown_lora"))
    draw(page, "a hill")
    expect(page.locator("#error-lora")).to_have_text("There is no adapter.")
    expect(page.locator("#lora-chips .hint")).to_contain_text("No longer available")
    forgive(page, complaints, "400")


def test_styles_are_not_offered_where_there_are_none(cell: FakeCell, open_page: OpenPage) -> None:
    drawn_with(cell, {"name": "ink", "scale": 1})
    page = open_page()
    draw(page, "a hill")
    expect(page.locator("[data-face=picture]")).to_have_count(2)
    expect(page.locator("#loras")).to_be_hidden()
    cell.loras, cell.takes_loras = SIX, False
    page.reload()
    expect(page.locator("#model")).not_to_be_empty()
    page.locator("#grid .open").last.click()
    page.keyboard.press("r")
    expect(page.locator("#toasts")).to_contain_text("this model takes no styles")
    expect(page.locator("#loras")).to_be_hidden()
    page.locator("#draw").click()
    expect(page.locator("[data-face=picture]")).to_have_count(3)
    assert "lora" not in cell.requests[-1]
