"""A person who steers a load from Locust's own page, in a real Chromium, on a real cell."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from deploy.config import ROOT
from loadtest import record
from tests.cluster.conftest import RunningCell
from tests.deploy.processes import wait_until
from tests.ports import free_ports
from tests.web.conftest import DESKTOP, chromium

__all__ = ["chromium"]

pytestmark = [
    *(pytest.mark.cluster, pytest.mark.browser),
    *(pytest.mark.timeout(300), pytest.mark.xdist_group("cell")),
    pytest.mark.long,
]


@contextlib.contextmanager
def locust(cell: RunningCell, records: Path) -> Iterator[str]:
    """Locust with its web UI, aimed at ``cell``; the address of the UI."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--host", cell.url]
    command += ["--web-host", "127.0.0.1", "--web-port", str(port), "--stop-timeout", "60"]
    with subprocess.Popen([*command, "--records", str(records)], cwd=ROOT) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def served(url: str) -> int:
    """Requests that Locust has counted; -1 while its UI does not answer yet."""
    with contextlib.suppress(httpx.HTTPError):
        return int(httpx.get(f"{url}/stats/requests").json()["stats"][-1]["num_requests"])
    return -1


def seen(page: Page, state: str) -> None:
    expect(page.get_by_text(re.compile(f"^{state}$", re.IGNORECASE))).to_be_visible(timeout=60_000)


def start(page: Page, users: int, sizes: str) -> None:
    page.get_by_label("Number of users").fill(str(users))
    page.get_by_label("Ramp up").fill(str(users))
    page.get_by_role("button", name="Custom parameters").click()
    page.get_by_label("sizes", exact=False).fill(sizes)
    page.get_by_role("button", name="Start").click()
    seen(page, "running")


def test_load_is_started_watched_and_stopped_from_the_page(
    cell: RunningCell, chromium: Browser, tmp_path: Path
) -> None:
    records = tmp_path / "requests.jsonl"
    with locust(cell, records) as url:
        wait_until(lambda: served(url) == 0, "Locust's page")
        page = chromium.new_context(**DESKTOP).new_page()  # type: ignore[arg-type]
        page.goto(url)
        start(page, users=6, sizes="128x128")
        wait_until(lambda: served(url) >= 12, "12 requests")
        page.get_by_role("button", name="Stop").click()
        seen(page, "stopped")
        found = record.read([records])
        assert len(found) >= 12
        assert {one.result for one in found} <= {"ok", "left"}

        # What is wrong shows as wrong, and the page's own fields reach the users.
        page.get_by_role("button", name="New").click()
        start(page, users=2, sizes="7x7")
        wait_until(lambda: len(record.read([records])) > len(found), "another request")
        page.get_by_role("button", name="Stop").click()
        seen(page, "stopped")
        page.get_by_role("tab", name="Failures").click()
        expect(page.get_by_text("HTTP 400").first).to_be_visible()
