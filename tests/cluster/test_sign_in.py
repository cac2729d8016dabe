"""The page with keys, in a real browser on a real cell: sign in, draw, see what was used."""

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.cluster.conftest import RunningCell
from tests.cluster.test_keys import known_after_s, make
from tests.deploy.processes import wait_until
from tests.web.conftest import DESKTOP, PHONE, chromium

__all__ = ["chromium"]

pytestmark = [pytest.mark.cluster, pytest.mark.browser, pytest.mark.xdist_group("keyed")]


@pytest.fixture
def cell(keyed: RunningCell) -> RunningCell:
    return keyed


def test_page_asks_for_a_key_draws_with_it_and_shows_its_use(
    cell: RunningCell, chromium: Browser
) -> None:
    key = make(cell, "design", "--images-per-day", "50")
    known_after_s(cell, key, 200)
    context = chromium.new_context(locale="en-US", **DESKTOP)  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(15_000)
    page.goto(cell.url)
    sign_in(page, "zimage_" + "x" * 43)
    expect(page.locator("#sign-in-error")).not_to_be_empty()
    sign_in(page, key)
    expect(page.locator("#sign-in")).not_to_be_visible()
    page.locator("#prompt").fill("a signed hill")
    page.locator("#draw").click()
    drawn = page.locator("[data-face=picture]").filter(has_text="a signed hill")
    expect(drawn).to_have_count(1, timeout=30_000)
    page.locator("#usage-tab").click()
    expect(page.locator("#usage-table tbody tr")).to_have_count(1, timeout=20_000)
    page.locator("#usage-by").select_option("key")
    expect(page.locator("#usage-table")).to_contain_text("design", timeout=10_000)
    page.goto(cell.url)
    expect(drawn).to_have_count(1, timeout=10_000)
    page.locator("#account summary").click()
    expect(page.locator("#sign-out")).to_be_visible()
    expect(page.locator("#account-ops")).to_be_hidden()
    context.close()


@pytest.mark.parametrize(
    ("locale", "word", "size"), [("en-US", "Operations", DESKTOP), ("zh-CN", "运维", PHONE)]
)
def test_operators_find_their_page(
    cell: RunningCell, chromium: Browser, locale: str, word: str, size: dict[str, object]
) -> None:
    key = make(cell, f"olga-{locale.lower()}", "--role", "ops")
    known_after_s(cell, key, 200)
    context = chromium.new_context(locale=locale, **size)  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(15_000)
    page.goto(cell.url)
    sign_in(page, key)
    page.locator("#account summary").click()
    page.get_by_role("link", name=word).click()
    expect(page.locator(".place")).to_have_text(word)
    expect(page.locator("#workers")).to_contain_text("w1")
    context.close()


def test_signing_out_ends_the_session_on_every_worker_and_everywhere_all_of_them(
    cell: RunningCell, chromium: Browser
) -> None:
    key = make(cell, "shared")
    known_after_s(cell, key, 200)
    contexts = [chromium.new_context(locale="en-US", **DESKTOP) for _ in range(3)]  # type: ignore[arg-type]
    pages = [context.new_page() for context in contexts]
    for page in pages:
        page.set_default_timeout(15_000)
        page.goto(cell.url)
        sign_in(page, key)
        expect(page.locator("#account-name")).to_have_text("shared")
    copy = {"Cookie": f"zimage_session={contexts[0].cookies()[0]['value']}"}
    assert answers(cell, copy) == {200}
    pages[0].locator("#account summary").click()
    pages[0].locator("#sign-out").click()
    expect(pages[0].locator("#sign-in")).to_be_visible()
    wait_until(lambda: answers(cell, copy) == {401}, "known to all workers")
    pages[1].reload()
    expect(pages[1].locator("#account-name")).to_have_text("shared")
    pages[1].locator("#account summary").click()
    pages[1].locator("#sign-out-everywhere").click()
    expect(pages[1].locator("#sign-in")).to_be_visible()
    other = {"Cookie": f"zimage_session={contexts[2].cookies()[0]['value']}"}
    wait_until(lambda: answers(cell, other) == {401}, "known to all workers")
    assert answers(cell, {"Authorization": f"Bearer {key}"}) == {200}
    for context in contexts:
        context.close()


def answers(cell: RunningCell, headers: dict[str, str]) -> set[int]:
    """Of all workers, as far as nginx takes turns."""
    return {
        httpx.get(f"{cell.url}/v1/models", headers=headers, timeout=30).status_code
        for _ in range(9)
    }


def sign_in(page: Page, key: str) -> None:
    page.locator("#key").fill(key)
    page.locator("#key").press("Enter")
