"""Nothing that a person made is lost by one key or click: every such act can be taken back."""

import pytest
from playwright.sync_api import Page, expect

from tests.web.conftest import OpenPage, forgive
from tests.web.fake_cell import FakeCell, Refuse
from tests.web.test_draw import draw
from tests.web.test_gallery import draw_and_wait, words
from tests.web.test_jobs import begun, fill_template
from tests.web.test_library import stored

pytestmark = pytest.mark.browser


def stop_the_clock(page: Page) -> None:
    """What is offered for some seconds stays, however busy the machine is."""
    page.clock.install()
    page.clock.pause_at(page.evaluate("Date.now()") / 1000 + 1)


def undo(page: Page) -> None:
    page.locator(".toast").get_by_role("button", name="Undo").click()


def test_keys_of_the_viewer_type_nothing_into_the_form(open_page: OpenPage) -> None:
    page = open_page()
    draw_and_wait(page, "a hill")
    page.locator(".open").click()
    page.keyboard.press("r")
    expect(page.locator("#prompt")).to_be_focused()
    expect(page.locator("#prompt")).to_have_value("a hill")


def test_deletions_in_the_viewer_are_taken_back_there_one_by_one(
    cell: FakeCell, open_page: OpenPage
) -> None:
    stored(cell, "one", "two", "three", "four")
    page = open_page()
    stop_the_clock(page)
    page.locator("#grid .open").first.click()
    for left in ("three", "two", "one"):
        page.keyboard.press("Delete")
        expect(page.locator("#viewer-prompt")).to_have_text(left)
    expect(page.locator("#viewer .toast")).to_contain_text("3 pictures deleted")
    for back in ("two", "three", "four"):
        undo(page)  # of what lies behind a modal dialog nothing can be clicked
        expect(page.locator("#viewer-prompt")).to_have_text(back)
    expect(page.locator(".toast")).to_have_count(0)
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-prompt")).to_have_text("three")
    page.keyboard.press("Escape")
    assert words(page) == ["four", "three", "two", "one"]
    assert len(cell.store.pictures) == 4


def test_other_notices_leave_the_undo_in_sight(open_page: OpenPage) -> None:
    page = open_page()
    # A machine without a screen may have no clipboard that ever answers.
    page.evaluate("navigator.clipboard.writeText = async () => {}")
    draw_and_wait(page, "one\ntwo")
    stop_the_clock(page)
    page.locator(".open").first.click()
    page.keyboard.press("Delete")
    expect(page.locator(".toast")).to_contain_text("Picture deleted")
    page.keyboard.press("c")
    expect(page.locator(".toast")).to_contain_text(["Picture deleted", "Prompt copied"])
    page.keyboard.press("Escape")
    undo(page)
    expect(page.locator("#grid .card")).to_have_count(2)


def test_a_held_key_deletes_one_picture(cell: FakeCell, open_page: OpenPage) -> None:
    stored(cell, "one", "two", "three")
    page = open_page()
    page.locator("#grid .open").first.click()
    page.keyboard.down("Delete")
    page.keyboard.down("Delete")  # tells it as a repeated one
    expect(page.locator("#viewer .toast")).to_contain_text("Picture deleted")
    expect(page.locator("#grid .card")).to_have_count(2)


def test_a_picture_that_cannot_be_deleted_comes_back_and_says_why(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    stored(cell, "one")
    page = open_page()
    page.clock.install()
    answer = {"status": 503, "json": {"error": {"message": "Not now."}}}
    page.route("**/v1/images/*-0", lambda route: route.fulfill(**answer))
    page.locator("#grid .open").click()
    page.keyboard.press("Delete")
    page.clock.run_for(9000)
    expect(page.locator(".toast")).to_contain_text("Not now.")
    expect(page.locator("#grid .card")).to_have_count(1)
    forgive(page, complaints, "503")


def test_text_that_other_settings_replace_comes_back(open_page: OpenPage) -> None:
    page = open_page()
    draw_and_wait(page, "a hill")
    stop_the_clock(page)
    prompt = page.locator("#prompt")
    prompt.fill("a long story\nin two lines")
    page.get_by_label("Steps", exact=True).evaluate("field => field.closest('details').open = true")
    page.get_by_label("Steps", exact=True).fill("9")
    page.locator(".open").click()
    page.keyboard.press("r")
    expect(prompt).to_have_value("a hill")
    prompt.fill("typed since")
    undo(page)
    expect(prompt).to_have_value("a long story\nin two lines")
    expect(page.get_by_label("Steps", exact=True)).to_have_value("9")
    page.locator("#history summary").click()
    page.locator("#history-list button", has_text="typed since").click()
    expect(prompt).to_have_value("typed since")
    undo(page)
    expect(prompt).to_have_value("a long story\nin two lines")


def test_a_template_that_the_example_replaces_comes_back(open_page: OpenPage) -> None:
    page = open_page()
    fill_template(page, "my {colour} {thing}", colour="mauve", thing="hat")
    stop_the_clock(page)
    page.get_by_role("button", name="Example").click()
    expect(page.locator("[data-variable=colour]")).to_have_value("red\nblue\nyellow")
    undo(page)
    expect(page.locator("#template")).to_have_value("my {colour} {thing}")
    expect(page.locator("[data-variable=colour]")).to_have_value("mauve")


def test_cancelled_pictures_are_drawn_after_all(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    cell.hold_before_step = 2
    draw(page, "\n".join(f"hill {k}" for k in range(5)))
    expect(page.locator("[data-state=drawing]")).to_have_count(3)
    stop_the_clock(page)
    page.get_by_role("button", name="Cancel all").click()
    expect(page.locator(".card")).to_have_count(0)
    cell.await_idle()
    undo(page)
    page.clock.resume()
    expect(page.locator(".card")).to_have_count(5)
    cell.release()
    expect(page.locator("[data-face=picture]")).to_have_count(5)
    assert words(page) == [f"hill {k}" for k in range(5)]
    first, again = (
        [body for body in cell.requests if body["prompt"] == "hill 0"][k] for k in (0, 1)
    )
    assert "seed" not in first
    assert again["resume"] == "place 0"
    assert again["seed"] >= 4_100_000_000  # the one that the first try was told


def test_a_failed_picture_that_was_dismissed_can_be_tried_again(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page()
    cell.faults.append(Refuse(500, "It broke."))
    draw(page, "a hill")
    expect(page.locator(".card")).to_contain_text("It broke.")
    stop_the_clock(page)
    page.get_by_role("button", name="Dismiss").click()
    expect(page.locator(".card")).to_have_count(0)
    undo(page)
    page.clock.resume()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("[data-face=picture]")).to_have_count(1)
    forgive(page, complaints, "500")


def test_a_deleted_job_comes_back_where_it_was(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    cell.store.finish(begun(cell, page), *range(1, 13))
    forget = page.locator("#job-head").get_by_role("button", name="Delete the job")
    expect(forget).to_be_visible()
    stop_the_clock(page)
    forget.click()
    expect(page.locator("#no-jobs")).to_be_visible()
    undo(page)
    expect(page.locator("#job-grid .card")).to_have_count(12)
    assert list(cell.store.jobs) == ["job_1"]


def test_a_paused_job_stays_paused_when_its_cancelling_is_taken_back(
    cell: FakeCell, open_page: OpenPage
) -> None:
    page = open_page()
    begun(cell, page)
    head = page.locator("#job-head")
    stop_the_clock(page)
    for verb, state in (("Pause", "paused"), ("Cancel", "cancelled")):
        head.get_by_role("button", name=verb).click()
        expect(head.locator(".badge")).to_have_text(state)
    undo(page)
    expect(head.locator(".badge")).to_have_text("paused")


def test_a_cancelled_job_goes_on_when_that_is_taken_back(
    cell: FakeCell, open_page: OpenPage
) -> None:
    page = open_page()
    job = begun(cell, page)
    cell.store.finish(job, 1, 2, 3)
    head = page.locator("#job-head")
    stop_the_clock(page)
    head.get_by_role("button", name="Cancel").click()
    expect(head.locator(".badge")).to_have_text("cancelled")
    # A quarter is drawn: the bar is no longer than that, and not in the colour of faults.
    assert head.locator(".bar span").evaluate("e => e.style.getPropertyValue('--done')") == "0.25"
    expect(head.get_by_role("button", name="Draw the rest")).to_be_visible()
    undo(page)
    expect(head.locator(".badge")).to_have_text("running")
    page.clock.resume()
    cell.store.finish(job, *range(4, 13))
    expect(page.locator("#job-grid [data-face=picture]")).to_have_count(12)
