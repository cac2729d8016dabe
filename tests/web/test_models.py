"""Several models: one is picked, what it can is offered, and none stands in for another unsaid."""

from typing import Any

import pytest
from playwright.sync_api import expect

from tests.web.conftest import PHONE, OpenPage, forgive
from tests.web.fake_cell import FakeCell, Refuse
from tests.web.fake_store import MODEL
from tests.web.test_draw import draw
from tests.web.test_page import AXE, RUN

pytestmark = pytest.mark.browser

SKETCH = "acme/Sketch"
SKETCHES: dict[str, Any] = {
    "id": SKETCH,
    "default_size": "512x512",
    "max_pixels": 512 * 512,
    "default_steps": 20,
    "edits": False,
    "masks": False,
    "loras": False,
}


def drawn(cell: FakeCell, k: int, model: str) -> None:
    """A picture of the gallery, the last one newest."""
    body = {"prompt": f"fox {k}", "size": "256x256", "model": model}
    cell.store.keep(f"{k + 900:032x}-0", body, 5, 8)


def test_the_picked_model_draws_and_offers_what_it_can(cell: FakeCell, open_page: OpenPage) -> None:
    cell.other_models = [SKETCHES]
    cell.loras = {"ink": "a" * 64}
    drawn(cell, 1, SKETCH)
    drawn(cell, 2, MODEL)
    page = open_page()
    pick, square = page.locator("#model-pick"), page.locator(".ratio", has_text="1:1")
    expect(pick.locator("option")).to_have_text(["Z-Image-Turbo", "Sketch"])  # and no alias
    alike = page.locator("#grid .card").get_by_role("button", name="More like this")
    expect(alike).to_have_count(1)  # Sketch draws from no picture
    expect(page.locator("#loras")).to_be_visible()
    page.evaluate(AXE)
    assert page.evaluate(RUN) == []
    pick.select_option("Sketch")
    expect(page.locator("#model")).to_have_text("Sketch")
    expect(square).to_contain_text("512 × 512")
    expect(page.locator("#loras")).to_be_hidden()
    expect(page.locator("#from-file-label")).to_have_text("Settings from a picture…")
    draw(page, "a hill")
    expect(page.locator("[data-face=picture]")).to_have_count(3)
    page.reload()
    expect(pick).to_have_value(SKETCH)
    draw(page, "a hill", n=11)
    expect(page.locator("#job-grid .card")).to_have_count(11)
    sent = [cell.requests[0], cell.store.bodies[0]]
    assert [(body["model"], body["size"]) for body in sent] == [(SKETCH, "512x512")] * 2
    page.locator("[data-view=gallery]").click()
    page.locator("#grid .open").nth(1).click()
    expect(page.locator("#viewer-meta")).to_contain_text("Z-Image-Turbo")
    expect(page.get_by_role("button", name="Draw from it")).to_have_count(0)
    page.keyboard.press("m")  # by the model that drew it
    expect(page.locator("[data-face=picture]")).to_have_count(7)
    assert cell.requests[1]["model"] == MODEL
    page.locator("#grid .open").nth(5).click()
    page.keyboard.press("r")
    expect(pick).to_have_value(MODEL)
    expect(square).to_contain_text("256 × 256")
    page.locator(".toast").get_by_role("button", name="Undo").click()
    expect(pick).to_have_value(SKETCH)


@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
def test_a_model_that_is_gone_is_told_and_another_draws(
    cell: FakeCell, open_page: OpenPage, complaints: list[str], locale: str
) -> None:
    cell.other_models = [SKETCHES]
    drawn(cell, 1, SKETCH)
    page = open_page(locale=locale, **PHONE)
    page.locator("#model-pick").select_option("Sketch")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    cell.other_models = []
    cell.faults.append(Refuse(404, "It is not served.", param="model", code="model_not_found"))
    page.locator("#prompt").fill("a hill")
    page.locator("#draw").tap()
    gone = {"en-GB": "Sketch is not available: Z-Image-Turbo is used instead"}
    told = gone.get(locale, "Sketch 当前不可用，改用 Z-Image-Turbo")
    expect(page.locator(".toast")).to_contain_text(told)
    expect(page.locator("#models")).to_be_hidden()
    forgive(page, complaints, "404")
    page.locator("#grid .open").tap()
    page.keyboard.press("r")
    expect(page.locator(".toast.acting")).to_contain_text(told)
    page.locator("#draw").tap()
    expect(page.locator("[data-face=picture]")).to_have_count(2)
    assert "model" not in cell.requests[-1]
