"""What is done with pictures that are there."""

import io

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.web.conftest import OpenPage, forgive
from tests.web.fake_cell import FIRST_SEED, FakeCell
from tests.web.landscapes import landscape
from tests.web.test_draw import draw

pytestmark = pytest.mark.browser


def draw_and_wait(page: Page, prompts: str, n: int = 1) -> None:
    before = page.locator(".card").count()
    draw(page, prompts, n)
    wanted = before + n * len(prompts.splitlines())
    expect(page.locator("[data-face=picture]")).to_have_count(wanted)


def words(page: Page) -> list[str]:
    return page.locator(".card .words").all_inner_texts()


def test_newest_pictures_come_first_in_the_order_of_the_lines(open_page: OpenPage) -> None:
    page = open_page()
    draw_and_wait(page, "first")
    draw_and_wait(page, "second\nthird")
    assert words(page) == ["second", "third", "first"]


def test_pictures_survive_a_reload_newest_first(open_page: OpenPage) -> None:
    page = open_page()
    draw_and_wait(page, "first")
    draw_and_wait(page, "second", n=2)
    page.reload()
    expect(page.locator(".card")).to_have_count(3)
    assert words(page) == ["second", "second", "first"]
    expect(page.locator(".open img").first).to_have_js_property("naturalWidth", 256)


def test_the_download_is_the_drawn_file(open_page: OpenPage) -> None:
    page = open_page()
    draw_and_wait(page, "a hill, at dawn")
    page.locator(".frame").hover()
    with page.expect_download() as started:
        page.get_by_role("button", name="Download").click()
    assert started.value.suggested_filename == f"a-hill-at-dawn-{FIRST_SEED + 100}.png"
    drawn = landscape("a hill, at dawn", FIRST_SEED + 100, 256, 256)
    assert Image.open(io.BytesIO(started.value.path().read_bytes())).tobytes() == drawn.tobytes()


def test_reused_settings_draw_the_same_request(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    page.locator(".ratio", has_text="2:3").click()
    draw_and_wait(page, "a hill", n=2)
    page.locator(".ratio", has_text="1:1").click()
    page.locator("#prompt").fill("something else")
    page.locator(".frame").nth(1).hover()
    page.get_by_role("button", name="Reuse settings").nth(1).click()
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.press("Control+Enter")
    expect(page.locator("[data-face=picture]")).to_have_count(3)
    first, again = cell.requests
    assert (again["prompt"], again["size"], again["n"]) == ("a hill", first["size"], 1)
    assert again["seed"] == FIRST_SEED + 101


def test_the_prompt_can_be_copied(open_page: OpenPage) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    draw_and_wait(page, "一座山")
    page.locator(".frame").hover()
    page.get_by_role("button", name="Copy prompt").click()
    expect(page.get_by_role("status")).to_contain_text("Prompt copied")
    assert page.evaluate("navigator.clipboard.readText()") == "一座山"


def test_the_prompt_can_be_copied_without_tls(open_page: OpenPage) -> None:
    page = open_page(permissions=["clipboard-read"])
    draw_and_wait(page, "一座山")
    page.evaluate(
        """() => {
            window.kept = navigator.clipboard;
            Object.defineProperty(navigator, "clipboard", { value: undefined });
        }"""
    )
    page.locator(".open").click()
    page.locator("#viewer").get_by_role("button", name="Copy prompt").click()
    expect(page.get_by_role("status")).to_contain_text("Prompt copied")
    assert page.evaluate("window.kept.readText()") == "一座山"


def test_the_viewer_walks_by_arrow_keys_and_closes_by_escape(open_page: OpenPage) -> None:
    page = open_page()
    draw_and_wait(page, "left\nmiddle\nright")
    page.locator(".open").nth(1).press("Enter")
    viewer = page.locator("#viewer")
    expect(viewer.locator("#viewer-prompt")).to_have_text("middle")
    page.keyboard.press("ArrowRight")
    expect(viewer.locator("#viewer-prompt")).to_have_text("right")
    expect(viewer.get_by_role("button", name="Next picture")).to_be_disabled()
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    expect(page.locator(".open").nth(2)).to_be_focused()


def test_a_deleted_picture_is_gone_until_undone(open_page: OpenPage) -> None:
    page = open_page()
    draw_and_wait(page, "one\ntwo")
    page.locator(".open").first.click()
    page.get_by_role("button", name="Delete").click()
    expect(page.locator("#viewer-prompt")).to_have_text("two")
    page.keyboard.press("Escape")
    assert words(page) == ["two"]
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".card")).to_have_count(2)
    assert words(page) == ["one", "two"]


def test_a_picture_whose_file_is_gone_says_so_and_can_be_drawn_again(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page()
    draw_and_wait(page, "a hill")
    draw_and_wait(page, "a river")
    [id] = (id for id, p in cell.store.pictures.items() if p["prompt"] == "a river")
    page.route(f"**/v1/images/{id}**", lambda route: route.fulfill(status=404))
    page.reload()
    card = page.locator(".card", has_text="a river")
    expect(card.locator(".gone")).to_contain_text("Picture is gone")
    expect(card.locator("img")).to_be_hidden()
    expect(page.locator(".card", has_text="a hill").locator(".gone")).to_be_hidden()
    page.locator("#language").click()
    expect(card.locator(".gone")).to_contain_text("图片已不在")
    page.locator("#language").click()
    card.locator(".frame").hover()
    expect(card.get_by_role("button", name="Download")).to_be_hidden()
    card.locator(".open").click()
    viewer = page.locator("#viewer")
    expect(viewer.locator(".gone")).to_contain_text("“Reuse settings” draws it again")
    expect(viewer.get_by_role("button", name="Download")).to_be_hidden()
    page.keyboard.press("ArrowRight")
    expect(viewer.locator("#viewer-prompt")).to_have_text("a hill")
    expect(viewer.locator(".gone")).to_be_hidden()
    expect(viewer.locator("#viewer-image")).to_be_visible()
    expect(viewer.get_by_role("button", name="Download")).to_be_visible()
    forgive(page, complaints, "404")


def test_a_picture_that_nobody_can_send_now_is_asked_for_again(
    open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page()
    draw_and_wait(page, "one")
    page.route("**/thumbnail", lambda route: route.fulfill(status=503))
    page.reload()
    image = page.locator(".open img")
    expect(image).to_have_class("unseen")
    forgive(page, complaints, "503")
    page.unroute_all()
    expect(image).to_be_visible()
    expect(image).to_have_js_property("naturalWidth", 256)
    expect(page.locator(".card .gone")).to_be_hidden()
    complaints[:] = [each for each in complaints if "503" not in each]


def test_preview_size_is_remembered(open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_role("radio", name="L", exact=True).check()
    page.reload()
    expect(page.locator("#grid")).to_have_attribute("data-tile", "l")
    expect(page.locator("#tiles input:checked")).to_have_value("l")
