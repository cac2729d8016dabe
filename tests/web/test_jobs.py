"""Jobs on the page: made by the form, followed, steered, and there again after everything."""

import pytest
from playwright.sync_api import Page, Route, expect

from tests.web.conftest import OpenPage, forgive
from tests.web.fake_cell import FakeCell
from tests.web.fake_store import FakeJob
from tests.web.test_draw import draw

pytestmark = pytest.mark.browser

SMALL_JOB = "\n".join(f"hill {k + 1}" for k in range(12))


def begun(cell: FakeCell, page: Page, lines: int = 12) -> FakeJob:
    """A job of ``lines`` prompts that this page has asked for and shows."""
    draw(page, "\n".join(f"hill {k + 1}" for k in range(lines)))
    expect(page.locator("#job-grid .card")).to_have_count(lines)
    return cell.store.jobs["job_1"]


def fill_template(page: Page, template: str, **variables: str) -> None:
    page.get_by_role("radio", name="Template").check()
    page.locator("#template").fill(template)
    for name, values in variables.items():
        page.locator(f"[data-variable={name}]").fill(values)


def hold(page: Page, address: str) -> list[Route]:
    """Requests to ``address``, as they come, none of which goes on by itself."""
    held: list[Route] = []
    page.route(address, lambda route: held.append(route))
    return held


def test_more_than_ten_pictures_become_a_job(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_label("Seed", exact=True).fill("7")
    page.locator(".ratio", has_text="3:2").click()
    page.locator("#prompt").fill("a hill\na lake")
    expect(page.locator("#as-job")).to_be_hidden()
    page.get_by_role("button", name="10 variants").click()
    expect(page.locator("#as-job")).to_contain_text("You can close this page")
    page.locator("#draw").click()
    expect(page.locator("#job-grid .card")).to_have_count(20)
    [body] = cell.store.bodies
    assert body.pop("idempotency_key")
    shape = {"size": "320x208", "output_format": "png", "seed": 7, "variants": 10}
    assert body == {"prompts": ["a hill", "a lake"], **shape}
    assert cell.requests == []


def test_a_template_shows_its_prompts_and_their_number(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    fill_template(page, "a {red|blue} poster of {product}", product="tea\ncoffee\n\n milk ")
    expect(page.locator("#expanded-count")).to_have_text("6 pictures, from these prompts")
    rows = page.locator("#expanded-list li")
    expect(rows).to_have_count(6)
    expect(rows.first).to_have_text("a red poster of tea")
    expect(page.locator("#draw-label")).to_have_text("Draw 6 pictures")
    page.locator("#draw").click()
    expect(page.locator("#job-grid .card")).to_have_count(6)
    [body] = cell.store.bodies
    assert body["template"] == "a {red|blue} poster of {product}"
    assert body["variables"] == {"product": ["tea", "coffee", "milk"]}


def test_what_is_wrong_with_a_template_is_said_where_it_stands(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page()
    fill_template(page, "a {red|blue poster")
    expect(page.locator("#error-template")).to_contain_text("this { is not closed")
    forgive(page, complaints, "400")
    page.locator("#template").fill("a {colour} poster of {product}")
    expect(page.locator("#error-template")).to_be_empty()
    page.locator("#draw").click()
    expect(page.locator("#error-template")).to_have_text(
        "Give {colour} and {product} at least one value."
    )
    assert cell.store.bodies == []


def test_template_and_values_survive_a_reload(open_page: OpenPage) -> None:
    page = open_page()
    fill_template(page, "{a|b} of {product} in {颜色}", product="tea", 颜色="红色\n蓝色")
    page.reload()
    expect(page.locator("#template")).to_have_value("{a|b} of {product} in {颜色}")
    expect(page.locator("#expanded-count")).to_have_text("4 pictures, from these prompts")


def test_pictures_of_a_job_arrive_as_they_are_drawn(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    job = begun(cell, page)
    cards = page.locator("#job-grid .card")
    cell.store.step(job, 2, 3)
    expect(cards.nth(1)).to_contain_text("Step 3 of 4")
    cell.store.finish(job, 1)
    expect(cards.first).to_have_attribute("data-face", "picture")
    cell.store.fail(job, 3, "Too strange.")
    expect(cards.nth(2)).to_contain_text("Too strange.")
    expect(page.locator("#job-head .facts")).to_contain_text("1 of 12 drawn")
    expect(page.locator("#job-head .facts")).to_contain_text("1 failed")
    expect(page.locator("#job-head .facts")).to_contain_text("ready at")
    cards.first.locator(".open").click()
    expect(page.locator("#viewer-prompt")).to_have_text("hill 1")


def test_a_job_is_there_in_another_browser(cell: FakeCell, open_page: OpenPage) -> None:
    first = open_page()
    job = begun(cell, first)
    first.context.close()
    cell.store.finish(job, *range(1, 13))
    page = open_page()
    page.get_by_role("link", name="Jobs").click()
    row = page.locator("#jobs .job")
    expect(row.locator(".badge")).to_have_text("completed")
    row.locator(".name").click()
    expect(page.locator("#job-grid [data-face=picture]")).to_have_count(12)
    page.reload()
    expect(page.locator("#job-grid [data-face=picture]")).to_have_count(12)


@pytest.mark.parametrize(
    ("held", "english", "chinese"),
    [
        ("key_disabled", "on hold: key disabled", "已搁置：密钥停用"),
        ("key_limit", "on hold: daily limit reached", "已搁置：今日额度已用完"),
    ],
)
def test_a_job_whose_key_may_draw_nothing_says_so(
    cell: FakeCell, open_page: OpenPage, held: str, english: str, chinese: str
) -> None:
    job = begun(cell, open_page())
    job.held = held
    for locale, said in (("en-US", english), ("zh-CN", chinese)):
        page = open_page(locale=locale)
        page.goto(f"{cell.url}/#jobs")
        expect(page.locator("#jobs .job .badge")).to_have_text(said)


def test_a_job_is_paused_resumed_cancelled_and_retried(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    job = begun(cell, page)
    head = page.locator("#job-head")
    head.get_by_role("button", name="Pause").click()
    expect(head.locator(".badge")).to_have_text("paused")
    head.get_by_role("button", name="Resume").click()
    expect(head.locator(".badge")).to_have_text("running")
    cell.store.finish(job, 1)
    head.get_by_role("button", name="Cancel").click()
    expect(page.locator("#job-grid .card").nth(1)).to_contain_text("cancelled")
    head.get_by_role("button", name="Draw the rest").click()
    expect(page.locator("#job-grid .card").nth(1)).to_contain_text("Waiting")
    cell.store.finish(job, *range(2, 13))
    expect(page.locator("#job-grid [data-face=picture]")).to_have_count(12)
    verbs = [path.rpartition("/")[2] for _, path in cell.store.calls]
    assert verbs == ["jobs", "pause", "resume", "cancel", "retry"]


def test_all_pictures_of_a_job_come_as_one_file(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    job = begun(cell, page)
    cell.store.finish(job, 1, 2)
    with page.expect_download() as started:
        page.locator("#job-head").get_by_role("link", name="Download all as ZIP").click()
    assert started.value.suggested_filename == "job.zip"


def test_running_jobs_are_in_sight_in_the_gallery(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    job = begun(cell, page)
    page.get_by_role("link", name="Gallery").click()
    expect(page.locator("#strip .job")).to_have_count(1)
    expect(page.locator("#jobs-count")).to_have_text("1")
    cell.store.finish(job, *range(1, 13))
    expect(page.locator("#strip .job")).to_have_count(0)
    expect(page.locator("#grid [data-face=picture]")).to_have_count(12)


def test_a_server_that_is_away_is_told_in_the_language_of_the_page(
    open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page(locale="zh-CN")
    page.locator("#prompt").fill(SMALL_JOB)
    page.route("**/v1/jobs", lambda route: route.abort())
    page.locator("#draw").click()
    expect(page.locator("#error-form")).to_have_text("无法连接服务器。")
    page.unroute("**/v1/jobs")
    page.locator("#draw").click()
    page.route("**/v1/jobs/job_1/pause", lambda route: route.abort())
    page.locator("#job-head").get_by_role("button", name="暂停").click()
    expect(page.locator("#toasts")).to_have_text("无法连接服务器。")
    forgive(page, complaints, "ERR_FAILED")


def test_going_back_leaves_first_the_viewer_and_then_the_job(
    cell: FakeCell, open_page: OpenPage
) -> None:
    page = open_page()
    cell.store.finish(begun(cell, page), 1)
    page.locator("#job-grid .open").click()
    expect(page.locator("#viewer")).to_be_visible()
    page.go_back()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#view-job")).to_be_visible()
    page.locator("#job-grid .open").click()
    page.keyboard.press("Escape")  # as if it had never been opened
    expect(page.locator("#viewer")).to_be_hidden()
    page.go_back()
    expect(page.locator("#view-gallery")).to_be_visible()


def test_the_viewer_closes_where_its_job_is_left(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    cell.store.finish(begun(cell, page), 1)
    page.locator("#job-grid .open").click()
    page.evaluate("location.hash = '#jobs'")
    expect(page.locator("#viewer")).to_be_hidden()


def test_events_of_a_job_are_all_that_is_asked_for(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page(clock_stands=True)
    job = begun(cell, page)
    listed: list[str] = []
    page.on("request", lambda r: listed.append(r.url) if "/v1/jobs?" in r.url else None)
    for k in range(1, 13):
        cell.store.finish(job, k)
        expect(page.locator("#job-head .facts")).to_contain_text(f"{k} of 12 drawn")
    assert listed == []


def test_a_job_that_cannot_be_deleted_comes_back_and_says_why(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page()
    page.clock.install()
    cell.store.finish(begun(cell, page), *range(1, 13))
    page.route(
        "**/v1/jobs/job_1",
        lambda route: route.fulfill(status=503, json={"error": {"message": "Not now."}}),
    )
    page.locator("#job-head").get_by_role("button", name="Delete the job").click()
    expect(page.locator("#no-jobs")).to_be_visible()
    page.clock.run_for(9000)
    expect(page.locator("#toasts")).to_contain_text("Not now.")
    expect(page.locator("#jobs .job")).to_have_count(1)
    forgive(page, complaints, "503")


def test_a_job_can_be_paused_before_its_pictures_are_there(
    cell: FakeCell, open_page: OpenPage
) -> None:
    page = open_page()
    held = hold(page, "**/v1/jobs/job_1/items*")
    draw(page, SMALL_JOB)
    head = page.locator("#job-head")
    head.get_by_role("button", name="Pause").click()
    expect(head.locator(".badge")).to_have_text("paused")
    held.pop().continue_()
    expect(page.locator("#job-grid .card")).to_have_count(12)
    cell.store.step(cell.store.jobs["job_1"], 2, 3)
    expect(page.locator("#job-grid .card").nth(1)).to_contain_text("Step 3 of 4")


def test_a_job_that_is_left_while_its_pictures_load_is_not_followed(
    cell: FakeCell, open_page: OpenPage
) -> None:
    page = open_page()
    held = hold(page, "**/v1/jobs/job_1/items*")
    followed: list[str] = []
    page.on("request", lambda request: followed.append(request.url))
    draw(page, SMALL_JOB)
    expect(page.locator("#job-head .name")).to_be_visible()
    page.locator("[data-view=jobs]").click()
    expect(page.locator("#view-jobs")).to_be_visible()
    with page.expect_response("**/items*"):
        held.pop().continue_()
    with page.expect_response("**/v1/jobs?*"):  # the list goes on
        pass
    assert [url for url in followed if "/events" in url] == []


@pytest.mark.parametrize("slow", ["", "/items*"])
def test_the_job_that_was_chosen_last_is_on_show(
    cell: FakeCell, open_page: OpenPage, slow: str
) -> None:
    page = open_page()
    begun(cell, page)
    draw(page, SMALL_JOB.replace("hill", "lake"))
    expect(page.locator("#job-grid .card").first).to_contain_text("lake 1")
    page.locator("[data-view=jobs]").click()
    held = hold(page, f"**/v1/jobs/job_1{slow}")
    with page.expect_request(f"**/v1/jobs/job_1{slow}"):
        page.locator("#jobs .name").nth(1).click()
    page.go_back()
    page.locator("#jobs .name").first.click()
    expect(page.locator("#job-grid .card")).to_have_count(12)
    with page.expect_response(f"**/v1/jobs/job_1{slow}"):
        held.pop().continue_()
    cell.store.step(cell.store.jobs["job_2"], 2, 3)
    expect(page.locator("#job-grid .card").nth(1)).to_contain_text("Step 3 of 4")
    expect(page.locator("#job-grid .card").first).to_contain_text("lake 1")


def test_a_deleted_job_leaves_its_pictures(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    job = begun(cell, page)
    cell.store.finish(job, *range(1, 13))
    page.locator("#job-head").get_by_role("button", name="Delete the job").click()
    expect(page.locator("#no-jobs")).to_be_visible()
    page.reload()  # whoever leaves takes nothing back
    expect(page.locator("#no-jobs")).to_be_visible()
    assert cell.store.jobs == {}
    page.get_by_role("link", name="Gallery").click()
    expect(page.locator("#grid .card")).to_have_count(12)


def test_a_large_job_is_shown_piece_by_piece(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    fill_template(page, "hill {n}", n="\n".join(str(k) for k in range(450)))
    expect(page.locator("#draw-label")).to_have_text("Draw 450 pictures")
    page.locator("#draw").click()
    expect(page.locator("#job-grid .card")).to_have_count(200)
    page.locator("#more-items").scroll_into_view_if_needed()
    expect(page.locator("#job-grid .card")).to_have_count(400)
