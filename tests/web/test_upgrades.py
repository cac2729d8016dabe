"""A page that stays open while the cell is upgraded, and answers that it does not know."""

import json

import pytest
from playwright.sync_api import Page, expect

from tests.web.conftest import OpenPage, forgive
from tests.web.fake_cell import FakeCell
from tests.web.test_draw import draw
from tests.web.test_jobs import SMALL_JOB, begun

pytestmark = pytest.mark.browser


def test_states_of_a_later_version_are_shown_by_their_names(
    cell: FakeCell, open_page: OpenPage
) -> None:
    page = open_page()
    job = begun(cell, page)
    job.state, job.held = "checking_twice", None
    job.items[0]["state"] = "resting"
    page.locator("[data-view=jobs]").click()
    row = page.locator("#jobs .job")
    expect(row.locator(".badge")).to_have_text("checking twice")
    expect(row.get_by_role("button")).to_have_count(0)
    job.held = "key_resting"
    expect(row.locator(".badge")).to_have_text("key resting")
    row.locator(".name").click()
    expect(page.locator("#job-grid .card").first).to_contain_text("Waiting")


def test_an_answer_that_the_page_does_not_understand_is_not_asked_for_again(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page()
    asked: list[str] = []
    event = {"type": "image_generation.queued", "request_id": "1", "place": {"of": 3}}

    def answer(route: object) -> None:
        asked.append("")
        body = f"data: {json.dumps(event)}\n\n"
        route.fulfill(body=body, content_type="text/event-stream")  # type: ignore[attr-defined]

    page.route("**/v1/images/generations", answer)
    draw(page, "a hill")
    expect(page.locator(".card")).to_contain_text("did not understand the answer")
    assert len(asked) == 1
    forgive(page, complaints, "TypeError")


def test_buttons_of_a_job_act_on_the_job_on_show(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    begun(cell, page)
    draw(page, SMALL_JOB.replace("hill", "lake"))
    expect(page.locator("#job-grid .card").first).to_contain_text("lake 1")
    head = page.locator("#job-head")
    expect(head.locator(".name")).to_have_attribute("href", "#job=job_2")
    head.get_by_role("button", name="Pause").click()
    expect(head.locator(".badge")).to_have_text("paused")
    assert [cell.store.jobs[id].state for id in ("job_1", "job_2")] == ["running", "paused"]


OBSERVED = """() => {
    window.observers = [];
    window.IntersectionObserver = class {
        constructor(heard) { observers.push(this); this.heard = heard; }
        observe(element) { this.element = element; }
        unobserve() {}
    };
}"""


def came_near(page: Page, id: str) -> None:
    """As a busy browser tells it: what was, and how it is by now, in one go."""
    page.evaluate(
        """(id) => observers.find(({ element }) => element.id === id)
            .heard([{ isIntersecting: false }, { isIntersecting: true }])""",
        id,
    )


def test_the_last_that_is_told_of_the_foot_of_a_list_counts(
    cell: FakeCell, open_page: OpenPage
) -> None:
    for k in range(70):
        cell.store.keep(f"{k:032x}-0", {"prompt": f"hill {k}", "size": "64x64"}, k, 8)
    page = open_page()
    page.add_init_script(f"({OBSERVED})()")
    page.reload()
    expect(page.locator("#summary")).to_have_text("60+ pictures")
    came_near(page, "more-pictures")
    expect(page.locator("#grid .card")).to_have_count(70)
