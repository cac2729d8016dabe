"""From the Draw button to the picture, through every way that a stream can end."""

import threading

import pytest
from playwright.sync_api import APIResponse, Page, Route, expect

from tests.web.conftest import OpenPage, forgive, pass_until
from tests.web.fake_cell import FIRST_SEED, Cut, FakeCell, Refuse

pytestmark = pytest.mark.browser


def draw(page: Page, prompts: str, n: int = 1) -> None:
    page.locator("#prompt").fill(prompts)
    page.get_by_label("Variants", exact=True).fill(str(n))
    page.locator("#draw").click()


def pass_until_said(page: Page, text: str) -> None:
    pass_until(page, lambda: text in page.locator(".card").first.inner_text(), text)


def pass_until_asked(page: Page, cell: FakeCell, times: int) -> None:
    pass_until(page, lambda: len(cell.requests) >= times, f"{times} requests")


def test_each_line_is_one_request_with_its_variants(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    draw(page, "a red hill\n\n  a blue hill  ", n=2)
    expect(page.locator("[data-face=picture]")).to_have_count(4)
    expected = {"n": 2, "size": "256x256", "output_format": "png"}
    streaming = {"stream": True, "partial_images": 3}
    assert cell.requests == [
        {"prompt": "a red hill", **expected, **streaming},
        {"prompt": "a blue hill", **expected, **streaming},
    ]


def test_the_picture_has_the_asked_size_and_seed(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    page.locator(".ratio", has_text="16:9").click()
    page.get_by_label("Seed", exact=True).fill("7")
    draw(page, "a hill")
    image = page.locator(".open img")
    expect(image).to_be_visible()
    page.wait_for_load_state()
    assert image.evaluate("i => i.decode().then(() => [i.naturalWidth, i.naturalHeight])") == [
        336,
        192,
    ]
    assert (cell.requests[0]["size"], cell.requests[0]["seed"]) == ("336x192", 7)


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_place_wait_steps_and_preview_are_shown(
    cell: FakeCell, open_page: OpenPage, motion: str
) -> None:
    page = open_page(reduced_motion=motion)
    cell.position, cell.wait_s, cell.hold_before_step = 2, 40, 0
    draw(page, "a hill")
    card = page.locator(".card")
    expect(card).to_contain_text("2 ahead in the queue")
    expect(card).to_contain_text("about 2 min")
    cell.hold_before_step = 4
    expect(card).to_contain_text("Step 3 of 4")
    expect(card.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "3")
    expect(card.locator("img.preview")).to_be_visible()
    cell.release()
    expect(page.locator("[data-face=picture]")).to_have_count(1)


def test_a_cut_stream_is_sent_again_with_its_seeds(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page()
    cell.faults.append(Cut(after_events=3))
    draw(page, "a hill", n=2)
    expect(page.locator("[data-face=picture]")).to_have_count(2)
    expect(page.locator(".card").first).to_contain_text("reconnected")
    assert [body.get("seed") for body in cell.requests] == [None, FIRST_SEED + 100]
    forgive(page, complaints, "ERR_INCOMPLETE_CHUNKED_ENCODING")


def test_a_cut_stream_is_sent_again_with_the_last_place_it_was_told(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page()
    cell.position = 1
    cut = Cut(after_events=3, when=threading.Event())
    cell.faults.extend([cut, Cut(after_events=0), Refuse(503, "Loading.", retry_after_s=0)])
    draw(page, "a hill")
    expect(page.locator("[data-state=drawing]")).to_have_count(1)
    cut.when.set()
    expect(page.locator("[data-face=picture]")).to_have_count(1)
    assert [body.get("resume") for body in cell.requests] == [None, *["place 0"] * 3]
    forgive(page, complaints, "ERR_INCOMPLETE_CHUNKED_ENCODING")
    forgive(page, complaints, "503")


def test_only_unfinished_pictures_are_sent_again(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page()
    # queued, 4 × 2 steps, 2 × 2 previews, then the first of two pictures
    cut = Cut(after_events=14, when=threading.Event())
    cell.faults.append(cut)
    draw(page, "a hill", n=2)
    expect(page.locator("[data-face=picture]")).to_have_count(1)
    assert len(cell.store.pictures) == 1
    cut.when.set()
    expect(page.locator("[data-face=picture]")).to_have_count(2)
    again = cell.requests[1]
    assert (again["n"], again["seed"]) == (1, FIRST_SEED + 101)
    forgive(page, complaints, "ERR_INCOMPLETE_CHUNKED_ENCODING")


def test_a_stream_that_ends_politely_without_done_was_cut_too(
    cell: FakeCell, open_page: OpenPage
) -> None:
    page = open_page()
    body = 'data: {"type":"image_generation.queued","seeds":[9],"position":0,"wait_s":1}\n\n'
    route = "**/v1/images/generations"
    page.route(route, lambda r: r.fulfill(body=body, content_type="text/event-stream"), times=1)
    draw(page, "a hill")
    expect(page.locator("[data-face=picture]")).to_have_count(1)
    assert cell.requests[0]["seed"] == 9


def test_tries_are_bounded_and_can_be_begun_again(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page(clock_stands=True)
    cell.faults.extend([Cut(after_events=1)] * 8)
    draw(page, "a hill")
    for tries in range(1, 8):
        pass_until_asked(page, cell, tries)
        pass_until_said(page, "Connection lost")
        assert len(cell.requests) == tries
    pass_until_said(page, "Not drawn")
    assert len(cell.requests) == 8
    page.clock.resume()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("[data-face=picture]")).to_have_count(1)
    assert len(cell.requests) == 9
    forgive(page, complaints, "ERR_INCOMPLETE_CHUNKED_ENCODING")


def test_a_busy_cell_is_asked_again_after_its_own_wait(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page(clock_stands=True)
    cell.faults.append(Refuse(503, "The queue is full.", retry_after_s=40))
    draw(page, "a hill")
    pass_until_said(page, "tries again in 40 s")
    page.clock.run_for(30_000)
    pass_until_said(page, "tries again in 10 s")
    assert len(cell.requests) == 1
    page.clock.run_for(11_000)
    page.clock.resume()
    expect(page.locator("[data-face=picture]")).to_have_count(1)
    forgive(page, complaints, "503")


def test_a_cell_that_still_loads_is_said_to(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page(clock_stands=True)
    cell.faults.append(Refuse(503, "Loading.", retry_after_s=60, code="not_ready"))
    draw(page, "a hill")
    pass_until_said(page, "tries again in 60 s")
    expect(page.locator(".card")).to_contain_text("No worker is ready")
    forgive(page, complaints, "503")


@pytest.mark.parametrize("param", ["prompt", "size", "n", "seed", "steps", "output_format"])
def test_a_refusal_is_shown_at_its_field_and_keeps_what_was_typed(
    cell: FakeCell, open_page: OpenPage, complaints: list[str], param: str
) -> None:
    page = open_page()
    cell.faults.append(Refuse(400, f"{param}: not like this.", param))
    draw(page, "a hill", n=2)
    expect(page.locator(f"#error-{param}")).to_have_text(f"{param}: not like this.")
    expect(page.locator(f"[data-field={param}] [aria-invalid=true]").first).to_be_visible()
    expect(page.locator("#prompt")).to_have_value("a hill")
    expect(page.locator("[data-face=failed]")).to_have_count(1)
    assert len(cell.requests) == 1
    forgive(page, complaints, "400")


def test_a_refusal_of_one_line_names_the_line(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page()
    cell.faults.append(Refuse(422, "It kills workers.", "prompt"))
    draw(page, "a poison\na hill")
    expect(page.locator("#error-prompt")).to_have_text("Line 1: It kills workers.")
    expect(page.locator("[data-face=picture]")).to_have_count(1)
    forgive(page, complaints, "422")


@pytest.mark.parametrize(
    ("locale", "told"),
    [
        ("en-GB", "Too long: 613 tokens, and the model reads 510. Shorten it by about 17 %."),
        ("zh-CN", "太长：共 613 个 token，模型最多读取 510 个。请缩短约 17%。"),
    ],
)
def test_a_prompt_that_would_be_cut_is_told_in_the_pages_language(
    cell: FakeCell, open_page: OpenPage, complaints: list[str], locale: str, told: str
) -> None:
    page = open_page(locale=locale)
    message = "prompt: 613 tokens; this model reads at most 510: shorten it by about 17 %."
    details = {"reason": "too_many_tokens", "tokens": 613, "most": 510, "percent": 17}
    cell.faults.append(Refuse(400, message, "prompt", code="prompt_too_long", details=details))
    page.locator("#prompt").fill("a long story")
    page.locator("#draw").click()
    expect(page.locator("#error-prompt")).to_have_text(told)
    forgive(page, complaints, "400")


def test_at_most_three_streams_are_open_and_the_rest_waits_in_sight(
    cell: FakeCell, open_page: OpenPage
) -> None:
    page = open_page()
    cell.hold_before_step = 1
    draw(page, "\n".join(f"hill {k}" for k in range(7)))
    expect(page.locator("[data-state=queued]")).to_have_count(3)
    expect(page.locator("[data-state=waiting]")).to_have_count(4)
    expect(page.locator(".card").last).to_contain_text("Waiting on this page, 3 ahead")
    assert cell.most_open_streams == 3
    cell.release()
    expect(page.locator("[data-face=picture]")).to_have_count(7)
    assert cell.most_open_streams == 3


def test_cancelling_the_last_picture_of_a_request_hangs_up(
    cell: FakeCell, open_page: OpenPage
) -> None:
    page = open_page()
    cell.hold_before_step = 2
    draw(page, "a hill", n=2)
    expect(page.locator("[data-state=drawing]")).to_have_count(2)
    page.get_by_role("button", name="Cancel: a hill").first.click()
    expect(page.locator(".card")).to_have_count(1)
    assert cell.open_streams == 1
    page.get_by_role("button", name="Cancel: a hill").click()
    expect(page.locator(".card")).to_have_count(0)
    cell.await_idle()
    assert cell.left == 1


def test_cancel_all_empties_the_queue(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    cell.hold_before_step = 1
    draw(page, "\n".join(f"hill {k}" for k in range(6)))
    expect(page.locator("[data-state=queued]")).to_have_count(3)
    page.get_by_role("button", name="Cancel all").click()
    expect(page.locator(".card")).to_have_count(0)
    expect(page.get_by_role("button", name="Cancel all")).to_be_hidden()
    cell.await_idle()
    assert (cell.left, len(cell.requests)) == (3, 3)


def test_unfinished_drawings_go_on_after_a_reload(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    cell.hold_before_step = 2
    draw(page, "a hill")
    expect(page.locator("[data-state=drawing]")).to_have_count(1)
    page.reload()
    cell.release()
    expect(page.locator("[data-face=picture]")).to_have_count(1)
    assert [body.get("seed") for body in cell.requests] == [None, FIRST_SEED + 100]
    assert cell.requests[1]["resume"] == "place 0"


def test_a_picture_that_ends_while_the_gallery_is_listed_stays(
    cell: FakeCell, open_page: OpenPage
) -> None:
    page = open_page()
    cell.hold_before_step = 2
    draw(page, "a hill")
    expect(page.locator("[data-state=drawing]")).to_have_count(1)
    held: list[tuple[Route, APIResponse]] = []
    page.route("**/v1/images?*", lambda route: held.append((route, route.fetch())), times=1)
    page.reload()
    while not held:  # the list of before the picture
        page.wait_for_timeout(10)
    cell.release()
    drawn = page.locator("[data-face=picture]")
    expect(drawn).to_have_count(1)
    route, listed = held[0]
    with page.expect_response("**/v1/images?*"):
        route.fulfill(response=listed)
    for _ in range(20):  # not only in the end: the next list would bring it back
        assert drawn.count() == 1
        page.wait_for_timeout(10)
