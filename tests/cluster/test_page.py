"""The page in a real Chromium on a real cell: what is begun there is finished, whatever dies."""

import io
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.cluster.conftest import RunningCell, started
from tests.web.conftest import DESKTOP, chromium
from worker.models.synthetic import text_of

__all__ = ["chromium"]

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.browser,
    pytest.mark.timeout(600),
    pytest.mark.long,
]

DEADLINE_MS = 240_000
COLOURS = ["red", "green", "blue", "yellow", "white"]
THINGS = ["circle", "star", "square"]
EXPECTED = [
    f"a {size} {colour} {thing}, {light}"
    for size in ("large", "small")
    for colour in COLOURS
    for thing in THINGS
    for light in ("day", "night")
]


@pytest.fixture(scope="module")
def cell() -> Iterator[RunningCell]:
    # 60 pictures of 8 steps of 100 ms: long enough for several deaths.
    with started(model="synthetic:step_ms=100,noise=1", max_batch=2) as running:
        yield running


def opened(browser: Browser, cell: RunningCell) -> Page:
    """The page in a browser that has never seen it."""
    context = browser.new_context(locale="en-GB", **DESKTOP)  # type: ignore[arg-type]
    context.set_default_timeout(DEADLINE_MS)
    page = context.new_page()
    page.goto(cell.url)
    expect(page.locator("#model")).not_to_be_empty()  # until then it knows no size of the model's
    return page


class Killer(threading.Thread):
    """Kills a worker at random every now and then, until ``over`` and at most four times: a picture
    that is inside many deaths counts as their cause, and is refused."""

    def __init__(self, cell: RunningCell) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.killed = 0
        self._cell = cell
        self._random = random.Random(7)

    def run(self) -> None:
        while self.killed < 4 and not self.over.wait(self._random.uniform(1.0, 2.5)):
            try:
                os.kill(self._cell.pid(self._random.choice(["w1", "w2", "w3"])), signal.SIGKILL)
            except (LookupError, OSError):
                continue
            self.killed += 1


def finished(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """The job once it is over; workers that are killed meanwhile may cost an answer."""
    deadline = time.monotonic() + DEADLINE_MS / 1000
    job: dict[str, Any] = {}
    while job.get("state") in (None, "running"):
        assert time.monotonic() < deadline, job
        answer = client.get(f"/v1/jobs/{job_id}")
        if answer.status_code == 200:
            job = answer.json()
        time.sleep(0.2)
    return job


def test_a_job_of_sixty_pictures_outlives_workers_and_browser(
    cell: RunningCell, chromium: Browser
) -> None:
    page = opened(chromium, cell)
    page.get_by_role("radio", name="Template").check()
    page.locator("#template").fill("a {large|small} {colour} {thing}, {day|night}")
    page.locator("[data-variable=colour]").fill("\n".join(COLOURS))
    page.locator("[data-variable=thing]").fill("\n".join(THINGS))
    expect(page.locator("#draw-label")).to_have_text("Draw 60 pictures")
    page.get_by_label("Seed", exact=True).fill("5000")
    page.locator("#draw").click()
    expect(page.locator("#job-grid .card")).to_have_count(60)
    job_id = page.url.partition("=")[2]
    killer = Killer(cell)
    killer.start()
    try:
        expect(page.locator("#job-grid [data-face=picture]").nth(5)).to_be_visible(
            timeout=DEADLINE_MS
        )
        page.context.close()  # as a tab is closed in the middle of it
        with httpx.Client(base_url=cell.url, timeout=60) as client:
            job = finished(client, job_id)
    finally:
        killer.over.set()
        killer.join()
    assert killer.killed >= 3
    assert (job["state"], job["counts"]["done"]) == ("completed", 60), cell.story()
    again = opened(chromium, cell)
    again.get_by_role("link", name="Jobs").click()
    again.locator("#jobs .job .name").click()
    expect(again.locator("#job-grid [data-face=picture]")).to_have_count(60, timeout=DEADLINE_MS)
    assert again.locator("#job-grid .words").all_inner_texts() == EXPECTED
    again.locator("#job-grid .open img").last.scroll_into_view_if_needed()
    shown = "i => i.decode().then(() => i.naturalWidth)"
    assert again.locator("#job-grid .open img").last.evaluate(shown) == 256
    again.get_by_role("link", name="Gallery").click()
    expect(again.locator("#grid .card").nth(59)).to_be_attached(timeout=DEADLINE_MS)
    with httpx.Client(base_url=cell.url, timeout=60) as client:
        check_pictures(client, job_id)


def check_pictures(client: httpx.Client, job_id: str) -> None:
    """Each item has one picture, and it is the one that its prompt and seed give."""
    items = client.get(f"/v1/jobs/{job_id}/items?limit=100").json()["data"]
    assert [(item["prompt"], item["seed"]) for item in items] == [
        (prompt, 5000 + k) for k, prompt in enumerate(EXPECTED)
    ]
    assert len({item["image"]["id"] for item in items}) == 60
    listed = client.get(f"/v1/images?job={job_id}&limit=200").json()["data"]
    assert {picture["id"] for picture in listed} == {item["image"]["id"] for item in items}
    assert len(listed) == 60
    for item in items:
        answer = client.get(item["image"]["url"])
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["cache-control"].startswith("private")
        pixels = np.asarray(Image.open(io.BytesIO(answer.content)))
        assert text_of(pixels) == f"{item['prompt']}|{item['seed']}|8"


def test_a_drawing_of_the_page_is_in_its_gallery_after_a_restart(
    cell: RunningCell, chromium: Browser
) -> None:
    page = opened(chromium, cell)
    page.locator("#prompt").fill("a picture to keep")
    page.locator("#draw").click()
    expect(page.locator("#grid .card[data-face=picture]").first).to_contain_text(
        "a picture to keep", timeout=DEADLINE_MS
    )
    page.get_by_label("Prompt, seed or job").fill("to keep")
    expect(page.locator("#grid .card")).to_have_count(1)
    page.locator("#grid .frame").hover()
    page.get_by_role("button", name="Favourite", exact=True).click()
    expect(page.locator("#grid .card.loved")).to_have_count(1)
    page.context.close()
    cell.down()
    cell.up()
    again = opened(chromium, cell)
    again.get_by_role("button", name="Favourites only").click()
    expect(again.locator("#grid .card")).to_have_count(1)
    image = again.locator("#grid .open img")
    assert image.evaluate("i => i.decode().then(() => i.naturalWidth)") == 256
