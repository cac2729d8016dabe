"""A real Chromium on a fake cell; whatever the console complains about fails the test."""

import re
import time
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

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
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
DESKTOP = {"viewport": {"width": 1360, "height": 850}}

OpenPage = Callable[..., Page]

expect.set_options(timeout=15_000)  # as for actions, below: machines that test are busy


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def cell() -> Iterator[FakeCell]:
    with FakeCell() as running:
        yield running


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """Console errors, page errors and requests to elsewhere. A test removes what it provoked."""
    found: list[str] = []
    yield found
    assert found == []


@pytest.fixture
def open_page(chromium: Browser, cell: FakeCell, complaints: list[str]) -> Iterator[OpenPage]:
    """Opens the page in a browser of its own; keyword arguments are those of a context."""
    contexts = []

    def open_one(**options: object) -> Page:
        settings = {"locale": "en-GB", "color_scheme": "dark", **DESKTOP, **options}
        context = chromium.new_context(**settings)  # type: ignore[arg-type]
        contexts.append(context)
        context.set_default_timeout(15_000)
        page = context.new_page()
        watch(page, cell.url, complaints)
        page.goto(cell.url)
        return page

    yield open_one
    for context in contexts:
        context.close()


def watch(page: Page, home: str, complaints: list[str]) -> None:
    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    def on_request(request: Request) -> None:
        if not request.url.startswith((home, "blob:", "data:")):
            complaints.append(f"external request: {request.url}")

    page.on("console", on_console)
    page.on("request", on_request)
    page.on("pageerror", lambda error: complaints.append(str(error)))


def forgive(page: Page, complaints: list[str], pattern: str) -> None:
    """Remove what the test itself provoked. It must come; the console may tell it late."""
    deadline = time.monotonic() + 15
    while not any(re.search(pattern, text) for text in complaints):
        assert time.monotonic() < deadline, complaints
        page.wait_for_timeout(20)
    complaints[:] = [text for text in complaints if not re.search(pattern, text)]
