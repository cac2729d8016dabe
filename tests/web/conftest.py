"""A real Chromium on a fake cell; whatever the console complains about fails the test."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Frame, Page, expect, sync_playwright

from tests.deploy.processes import wait_until
from tests.web.fake_cell import FakeCell

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Whoever waits for a picture looks at what moves, which costs half a core to draw without a GPU.
STILL = {"reduced_motion": "reduce"}
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, **STILL}
DESKTOP = {"viewport": {"width": 1360, "height": 850}, **STILL}

OpenPage = Callable[..., Page]

PATIENCE_MS = 15_000  # machines that test are busy
expect.set_options(timeout=PATIENCE_MS)


def program() -> str:
    """Chromium without what draws windows, where there is that: a page costs it half the time."""
    return shutil.which("chromium-headless-shell") or "/usr/bin/chromium"


@contextmanager
def _started() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """For tests elsewhere: while it runs, nothing async can be tested in this process."""
    with _started() as browser:
        yield browser


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """For all tests of the page, which one process runs."""
    with _started() as browser:
        yield browser


@pytest.fixture
def cell() -> Iterator[FakeCell]:
    with FakeCell() as running:
        yield running


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """Console errors, page errors and ways to elsewhere. A test removes what it provoked."""
    found: list[str] = []
    yield found
    assert found == []


@pytest.fixture
def open_page(browser: Browser, cell: FakeCell, complaints: list[str]) -> Iterator[OpenPage]:
    """Opens the page in a browser of its own; keyword arguments are those of a context.

    ``clock_stands``: time passes on the page, which even draws only then, by ``page.clock.run_for``
    and ``pass_until`` alone.
    """
    contexts = []

    def open_one(*, clock_stands: bool = False, **options: object) -> Page:
        settings = {"locale": "en-GB", "color_scheme": "dark", **DESKTOP, **options}
        context = browser.new_context(**settings)  # type: ignore[arg-type]
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        watch(page, cell.url, complaints)
        if clock_stands:
            page.clock.install()
        page.goto(cell.url)
        if cell.store.key is None and cell.open_workers:
            # Until then it draws a size that is not the model's.
            expect(page.locator("#model")).not_to_be_empty()
        if clock_stands:
            page.clock.pause_at(page.evaluate("Date.now()") / 1000 + 1)
        return page

    yield open_one
    for context in contexts:
        context.close()


def watch(page: Page, home: str, complaints: list[str]) -> None:
    """A request to elsewhere is an error of the console, by the policy that comes with the page.
    (Being told of each request takes a twentieth of a second a page.)"""

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    def on_navigated(frame: Frame) -> None:
        if not frame.url.startswith((home, "blob:", "about:")):
            complaints.append(f"left for {frame.url}")

    page.on("console", on_console)
    page.on("framenavigated", on_navigated)
    page.on("pageerror", lambda error: complaints.append(str(error)))


def pass_until(page: Page, true: Callable[[], bool], what: str) -> None:
    """Let time pass on a page whose clock stands: less at once than it waits between two tries."""

    def passed() -> bool:
        page.clock.run_for(50)
        return true()

    wait_until(passed, what)


def forgive(page: Page, complaints: list[str], pattern: str) -> None:
    """Remove what the test itself provoked. It must come; the console may tell it late."""

    def told() -> bool:
        page.wait_for_timeout(0)  # lets Playwright pass on what the browser said
        return any(re.search(pattern, text) for text in complaints)

    wait_until(told, f"a complaint of {pattern}")
    complaints[:] = [text for text in complaints if not re.search(pattern, text)]
