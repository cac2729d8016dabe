"""The server's gallery on the page, settings out of files, signing in, usage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.deploy.processes import wait_until
from tests.web.conftest import OpenPage, forgive
from tests.web.fake_cell import FakeCell
from tests.web.test_draw import draw
from worker.generation.imaging import encode, parameters_text
from worker.types import ChosenLoras, DrawSpec, Lora, Parameters

pytestmark = pytest.mark.browser


def stored(cell: FakeCell, *prompts: str, **more: Any) -> None:
    """Pictures that somebody drew elsewhere, the last one newest."""
    for prompt in prompts:
        k = len(cell.store.pictures)
        cell.store.keep(f"{k + 900:032x}-0", {"prompt": prompt, "size": "64x64"}, k, 8, **more)


def words(page: Page) -> list[str]:
    return page.locator("#grid .words").all_inner_texts()


def test_pictures_of_the_server_are_there_in_any_browser(
    cell: FakeCell, open_page: OpenPage
) -> None:
    stored(cell, "a fox", "a hill")
    page = open_page()
    expect(page.locator("#grid .card")).to_have_count(2)
    assert words(page) == ["a hill", "a fox"]
    stored(cell, "from elsewhere")
    expect(page.locator("#grid .card")).to_have_count(3)
    assert words(page)[0] == "from elsewhere"


def test_a_picture_that_was_drawn_here_is_shown_once(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    draw(page, "a hill", n=2)
    expect(page.locator("[data-face=picture]")).to_have_count(2)
    with page.expect_response("**/v1/images?*"):
        pass
    page.wait_for_timeout(200)
    assert words(page) == ["a hill", "a hill"]


def test_the_search_finds_words_of_prompts(cell: FakeCell, open_page: OpenPage) -> None:
    stored(cell, "a red fox", "a red hill", "a blue fox")
    page = open_page()
    page.get_by_label("Prompt, seed or job").fill("fox red")
    expect(page.locator("#grid .card")).to_have_count(1)
    assert words(page) == ["a red fox"]
    page.get_by_label("Prompt, seed or job").fill("whale")
    expect(page.locator("#nothing")).to_be_visible()
    page.get_by_label("Prompt, seed or job").fill("")
    expect(page.locator("#grid .card")).to_have_count(3)


def test_favourites_are_marked_and_found(cell: FakeCell, open_page: OpenPage) -> None:
    stored(cell, "a fox", "a hill")
    page = open_page()
    page.locator("#grid .open").last.click()
    page.keyboard.press("f")
    star = page.locator("#viewer").get_by_role("button", name="Favourite")
    expect(star).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Favourites only").click()
    expect(page.locator("#grid .card")).to_have_count(1)
    assert words(page) == ["a fox"]
    page.reload()
    expect(page.locator("#grid .card.loved")).to_have_count(1)


def test_more_comes_when_somebody_looks_further(cell: FakeCell, open_page: OpenPage) -> None:
    stored(cell, *(f"hill {k}" for k in range(150)))
    page = open_page()
    expect(page.locator("#summary")).to_have_text("60+ pictures")

    def all_came() -> bool:
        page.mouse.wheel(0, 20_000)
        page.wait_for_timeout(100)
        return page.locator("#grid .card").count() == 150

    wait_until(all_came, "all 150")
    assert words(page) == [f"hill {k}" for k in range(149, -1, -1)]


def test_a_deleted_picture_is_deleted_on_the_server(cell: FakeCell, open_page: OpenPage) -> None:
    stored(cell, "a fox", "a hill")
    page = open_page()
    page.clock.install()
    page.locator("#grid .open").first.click()
    page.keyboard.press("Delete")
    page.keyboard.press("Escape")
    expect(page.locator("#grid .card")).to_have_count(1)
    assert len(cell.store.pictures) == 2
    with page.expect_response(lambda r: r.request.method == "DELETE"):
        page.clock.run_for(9000)
    assert [p["prompt"] for p in cell.store.pictures.values()] == ["a fox"]


def test_leaving_the_page_does_not_take_the_deletion_back(
    cell: FakeCell, open_page: OpenPage
) -> None:
    stored(cell, "a fox")
    page = open_page()
    page.locator("#grid .open").click()
    page.keyboard.press("Delete")
    page.wait_for_function("history.state === null")  # the viewer has left it
    page.reload()
    expect(page.locator("#empty")).to_be_visible()
    assert cell.store.pictures == {}


def test_earlier_prompts_can_be_taken_up_again(open_page: OpenPage) -> None:
    page = open_page()
    for prompt in ("a fox", "a hill\na lake"):
        draw(page, prompt)
        expect(page.locator("[data-face=pending]")).to_have_count(0)
    page.reload()
    page.locator("#history summary").click()
    expect(page.locator("#history-list button")).to_have_text(["a hill\na lake", "a fox"])
    page.locator("#history-list button").last.click()
    expect(page.locator("#prompt")).to_have_value("a fox")


def drop(page: Page, data: bytes) -> None:
    """A file, as if it came from a folder."""
    page.evaluate(
        """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "picture", { type: "image/png" }));
            const options = { dataTransfer: transfer, bubbles: true, cancelable: true };
            const event = (name) => new DragEvent(name, options);
            document.body.dispatchEvent(event("dragover"));
            document.body.dispatchEvent(event("drop"));
        }""",
        list(data),
    )


SPEC = DrawSpec(
    "一座山, at dusk: Steps: none",
    4_100_000_007,
    Parameters(128, 64, 6, 2.5, "雾, grey", lora=ChosenLoras.of([Lora("ink", -0.5, "1" * 64)])),
)


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_a_dropped_picture_brings_its_settings_back(
    open_page: OpenPage, tmp_path: Path, image_format: str
) -> None:
    page = open_page()
    pixels = np.zeros((64, 128, 3), np.uint8)
    data = encode(pixels, image_format, None, parameters_text(SPEC, "tiny"))
    drop(page, data)
    page.get_by_role("button", name="Use its settings").click()
    expect(page.locator("#prompt")).to_have_value(SPEC.prompt)
    expect(page.get_by_label("Seed", exact=True)).to_have_value("4100000007")
    expect(page.get_by_label("Steps", exact=True)).to_have_value("6")
    expect(page.get_by_label("Guidance")).to_have_value("2.5")
    expect(page.get_by_label("Negative prompt")).to_have_value("雾, grey")
    expect(page.get_by_label("Width")).to_have_value("128")
    expect(page.locator("#lora-chips")).to_contain_text("ink-0.5")
    expect(page.locator("#drop")).to_be_hidden()


def test_a_dropped_folder_is_no_picture(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page()
    data = {"items": [], "files": [str(tmp_path)], "dragOperationsMask": 1}
    browser = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": 200, "y": 200, "data": data}
        browser.send("Input.dispatchDragEvent", event)
    expect(page.locator("#toasts")).to_contain_text("no picture")


def test_a_picture_can_be_chosen_and_may_say_nothing(
    cell: FakeCell, open_page: OpenPage, tmp_path: Path
) -> None:
    cell.edits = False
    page = open_page()
    file = tmp_path / "cut.png"
    file.write_bytes(encode(np.zeros((64, 64, 3), np.uint8), "png", None, "a hill")[:60])
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Settings from a picture").click()
    chooser.value.set_files(file)
    expect(page.get_by_role("status").last).to_contain_text("does not say how it was drawn")


def test_a_cell_with_keys_asks_for_one(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    cell.store.key = "secret"
    stored(cell, "a fox")
    page = open_page()
    page.get_by_label("API key").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#sign-in-error")).to_have_text(
        "This key is wrong, expired or switched off."
    )
    forgive(page, complaints, "401")
    page.get_by_label("API key").fill("secret")
    page.keyboard.press("Enter")
    expect(page.locator("#grid .card")).to_have_count(1)
    expect(page.locator("#account-name")).to_have_text("Design team")
    page.locator("#account summary").click()
    expect(page.locator("#account-facts")).to_have_text("42 of 500 pictures today")
    page.get_by_role("button", name="Sign out", exact=True).click()
    expect(page.get_by_label("API key")).to_be_visible()
    expect(page.locator("#grid .card")).to_have_count(0)
    assert cell.store.signed_out == [""]


def test_signing_out_everywhere_says_so_if_it_was_not_done(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    cell.store.key = "secret"
    page = open_page()
    page.get_by_label("API key").fill("secret")
    page.keyboard.press("Enter")
    page.locator("#account summary").click()
    cell.store.away = True
    page.get_by_role("button", name="Sign out everywhere").click()
    expect(page.locator("#toasts")).to_contain_text("Others may still be signed in: It is away.")
    forgive(page, complaints, "503")
    cell.store.away = False
    page.get_by_role("button", name="Sign out everywhere").click()
    expect(page.get_by_label("API key")).to_be_visible()
    assert cell.store.signed_out == ["everywhere=true"]


def test_nothing_is_asked_for_before_signing_in(cell: FakeCell, open_page: OpenPage) -> None:
    cell.store.key = "secret"
    page = open_page()
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_label("API key")).to_be_visible()
    expect(page.locator("#health-text")).to_contain_text("worker")
    page.wait_for_timeout(300)  # for a refusal, which would be among the complaints


def test_usage_is_drawn_and_written(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_role("link", name="Usage").click()
    expect(page.locator("#chart .column")).to_have_count(30)
    expect(page.locator("#usage-table tbody tr")).to_have_count(12)
    page.locator("#usage-by").select_option("key")
    expect(page.locator("#usage-table tbody th").first).to_have_text("Design team")


def test_a_cell_that_does_not_count_has_no_usage(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    cell.store.usage = False
    page = open_page()
    expect(page.locator("#empty")).to_be_visible()
    expect(page.get_by_role("link", name="Usage")).to_be_hidden()
    forgive(page, complaints, "404")


def test_a_gallery_that_is_away_says_so_and_comes_back(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    stored(cell, "a fox")
    error = {"error": {"message": "away", "code": "store_unavailable"}}
    page = open_page()
    page.route("**/v1/images?*", lambda r: r.fulfill(status=503, body=json.dumps(error)))
    page.reload()
    expect(page.locator("#summary")).to_have_text("The gallery cannot be reached now")
    page.unroute_all()
    # It asks again every five seconds.
    expect(page.locator("#grid .card")).to_have_count(1, timeout=15_000)
    forgive(page, complaints, "503")
