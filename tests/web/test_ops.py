"""The page of operators: real nginx with its headers, real Chromium, and a guard's files."""

import io
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect
from rich.console import Console

from deploy import output
from deploy.guard.gate import make_closed_socket
from deploy.layout import Layout
from tests.deploy.nginx.site import configuration, files, nginx_command, write
from tests.deploy.processes import running, wait_until
from tests.web import ops_data
from tests.web.conftest import DESKTOP, PHONE, forgive, watch

pytestmark = pytest.mark.browser


@dataclass
class Ops:
    """nginx's ops address over files that the test writes as the guard would."""

    layout: Layout
    url: str

    def write(self, **changes: Any) -> None:
        now = time.time()
        self.layout.cell_json.write_text(json.dumps(ops_data.cell(now, **changes)))
        self.layout.history_json.write_text(json.dumps(ops_data.history(now)))

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/nginx/metrics").status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ops]:
    folder = tmp_path_factory.mktemp("ops")
    config, layout = configuration(folder), Layout(folder, folder / "run")
    write(layout, files(config, layout))
    make_closed_socket(layout.closed_socket)
    ops = Ops(layout, f"http://127.0.0.1:{config.ops.port}")
    with running(nginx_command(layout), layout.log("nginx")):
        wait_until(ops.answers, "nginx")
        yield ops


@pytest.fixture
def ops(site: Ops) -> Ops:
    site.write()
    return site


OpenOps = Callable[..., Page]


@pytest.fixture
def open_ops(ops: Ops, browser: Browser, complaints: list[str]) -> Iterator[OpenOps]:
    contexts = []

    def open_one(**options: Any) -> Page:
        context = browser.new_context(**{"locale": "en-GB", **DESKTOP, **options})
        contexts.append(context)
        context.set_default_timeout(15_000)
        page = context.new_page()
        watch(page, ops.url, complaints)
        page.goto(f"{ops.url}/ops/")
        page.locator("#workers tbody tr").first.wait_for()
        return page

    yield open_one
    for context in contexts:
        context.close()


def row(page: Page, worker: str) -> str:
    cells = page.locator("#workers tbody tr", has=page.get_by_text(worker, exact=True))
    return " ".join(cells.inner_text().split())


def test_each_worker_is_shown_as_the_guard_saw_it(open_ops: OpenOps) -> None:
    page = open_ops()
    expect(page.locator("#cell")).to_have_text("studio")
    expect(page).to_have_title("studio · operations")
    drawing, loading = row(page, "w1"), row(page, "w3")
    for words in ("busy", "step", "0.08 s", "2 requests", "3 · 2", "4.2 s", "NVIDIA H100", "97 %"):
        assert words in drawing
    for words in ("3.2 GiB", "43 of 80 GiB on the card", "63 °C"):
        assert words in drawing
    assert "out of the pool" not in drawing
    for words in ("loading", "out of the pool", "killed: hung in a step: 5.2 s", "ago"):
        assert words in loading


def test_a_front_shows_hosts_and_then_their_workers(ops: Ops, open_ops: OpenOps) -> None:
    ops.write(**ops_data.front(time.time()))
    page = open_ops()
    hosts = page.locator("#hosts tbody tr")
    assert " ".join(hosts.nth(0).inner_text().split()).startswith("gpu1 ready")
    assert "4 / 4 2.4 s 10.0.0.7:7862" in " ".join(hosts.nth(0).inner_text().split())
    lost = " ".join(hosts.nth(1).inner_text().split())
    assert re.match(r"gpu2 lost for \d+ s out of the pool silent for 14\.2 s 0 / 4", lost)
    assert row(page, "gpu1/w1").startswith("gpu1/w1 busy")


def test_one_host_shows_no_table_of_hosts(open_ops: OpenOps) -> None:
    expect(open_ops().locator("#hosts-box")).to_be_hidden()


def test_command_line_says_the_same(ops: Ops, open_ops: OpenOps) -> None:
    state = json.loads(ops.layout.cell_json.read_text())
    cell = {"name": "studio", "url": "", "uptime_s": 60, "supervisor": True, "version": "1.0.0"}
    told = io.StringIO()
    console = Console(file=told, width=200)
    console.print(output.status(state | {"cell": cell, "stale": False, "age_s": 0}))
    lines = told.getvalue().splitlines()
    page = open_ops()
    assert "pool 3 of 4" in told.getvalue()
    expect(page.locator("#figures b").first).to_have_text("3 of 4")
    for worker in state["workers"]:
        line = next(line for line in lines if line.strip().startswith(worker["name"]))
        shown = row(page, worker["name"])
        for word in (worker["state"], f"{worker['resident_bytes'] / 2**30:.1f} GiB"):
            assert word in line
            assert word in shown
        if worker["predicted_wait_s"]:
            assert "4.2 s" in line
            assert "4.2 s" in shown


def test_history_has_lanes_and_charts(open_ops: OpenOps) -> None:
    page = open_ops()
    expect(page.locator("#lanes .name")).to_have_text(["w1", "w2", "w3", "w4"])
    expect(page.locator("#charts figure:visible")).to_have_count(5)
    page.get_by_label("6 h").check(force=True)
    expect(page.locator("#lanes rect.unknown")).to_have_count(1)
    page.locator("#lanes rect.unknown").hover()
    expect(page.locator("#tip")).to_contain_text("no data")
    expect(page.locator("#tip")).to_contain_text("10 m 0 s")
    answers = page.locator("figure", has_text="Drawing requests a minute")
    assert answers.locator("rect.good").count() > 40
    assert answers.locator("rect.warn").count() > 4
    answers.locator("svg").hover()
    expect(page.locator("#tip")).to_contain_text("answered")
    summary = page.locator("figure", has_text="Time to an answer").locator("svg")
    expect(summary).to_have_attribute("aria-label", re.compile(r"p50 [\d.]+ s, p95 [\d.]+ s"))


def test_range_is_remembered(open_ops: OpenOps) -> None:
    page = open_ops()
    page.get_by_label("2 h").check(force=True)
    page.reload()
    expect(page.get_by_label("2 h")).to_be_checked()


def test_buckets_lose_no_count_and_invent_none(open_ops: OpenOps) -> None:
    found = open_ops().evaluate("""async () => {
        const { bucketsOf, perMinute } = await import("/ops/points.js");
        const rows = [15, 30, 45, 600].map((at) => ({ at, images: 2, p50_s: at, p95_s: at }));
        const range = { from: 0, to: 660, interval_s: 15, count: 11 };
        const buckets = bucketsOf(rows, range);
        return {
            number: buckets.length,
            images: buckets.map((bucket) => bucket.images ?? null),
            rate: buckets.map(perMinute("images")),
            p50: buckets[0].p50_s,
            p95: buckets[0].p95_s,
        };
    }""")
    assert found["number"] == 11
    assert found["images"] == [6, *[None] * 9, 2]
    assert found["rate"] == [8, *[None] * 9, 8]
    assert (found["p50"], found["p95"]) == (30, 45)


def test_an_alarm_stands_first_and_leads_to_its_entry(ops: Ops, open_ops: OpenOps) -> None:
    now = time.time()
    ops.write(alarms=[ops_data.alarm("fatal", now, "w3", "supervisor gave up on w3")])
    for locale, words, book in (
        ("en-GB", "w3: A program ends soon after each start", "runbook.md"),
        ("zh-CN", "w3: 程序每次启动后很快退出", "runbook.zh-CN.md"),
    ):
        page = open_ops(locale=locale)
        expect(page.locator("#alarms")).to_contain_text(words)
        link = page.locator("#alarms a").get_attribute("href")
        assert link == f"docs/{book}#fatal"
        reply = httpx.get(f"{ops.url}/ops/{link}")
        assert "### fatal" in reply.text
        assert reply.headers["content-type"] == "text/plain; charset=utf-8"


def test_what_is_old_is_called_old(ops: Ops, open_ops: OpenOps, complaints: list[str]) -> None:
    page = open_ops()
    expect(page.locator("#alarms")).to_be_empty()
    ops.write(at=time.time() - 60)
    expect(page.locator("#alarms")).to_contain_text("The guard has written nothing for 1 m")
    ops.layout.cell_json.unlink()
    expect(page.locator("#alarms")).to_contain_text("The cell does not answer")
    assert "busy" in row(page, "w1")
    ops.write()
    expect(page.locator("#alarms")).to_be_empty()
    forgive(page, complaints, "404")


@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
def test_it_fits_a_phone(open_ops: OpenOps, ops: Ops, locale: str) -> None:
    now = time.time()
    text = "process 4711 survives SIGKILL in state D"
    ops.write(alarms=[ops_data.alarm("unkillable", now, "w3", text)])
    page = open_ops(locale=locale, **PHONE)
    page.locator("#alarms a").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for figure in page.locator("#figures b").all():
        assert figure.evaluate("node => node.scrollWidth <= node.clientWidth")


def test_language_and_theme_are_those_of_the_page_for_drawing(open_ops: OpenOps) -> None:
    page = open_ops(color_scheme="light")
    page.locator("#language").click()
    expect(page.locator("#workers-title")).to_have_text("绘图进程")
    assert "busy 绘制中" in row(page, "w1")
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.reload()
    expect(page.locator("#workers-title")).to_have_text("绘图进程")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_every_word_is_there_in_both_languages(open_ops: OpenOps) -> None:
    missing = open_ops().evaluate("""async () => {
        const { STRINGS } = await import("/js/i18n.js");
        return Object.entries(STRINGS).filter(([, pair]) => pair.length !== 2).map(([key]) => key);
    }""")
    assert missing == []
    used: set[str] = set()
    for script in (Path(__file__).parents[2] / "web" / "ops").glob("*.js"):
        used |= set(re.findall(r'\b(?:t\(|label: |title: )"(\w+)"', script.read_text()))
    known = open_ops().evaluate("async () => Object.keys((await import('/js/i18n.js')).STRINGS)")
    assert used <= set(known)


def test_it_is_as_closed_as_the_page_for_drawing(ops: Ops) -> None:
    for path in ("/ops/", "/ops/ops.js", "/js/dom.js"):
        reply = httpx.get(ops.url + path)
        assert "script-src 'self'" in reply.headers["Content-Security-Policy"]
        assert reply.headers["X-Frame-Options"] == "DENY"
    assert httpx.get(f"{ops.url}/", follow_redirects=True).status_code == 200
    for path in (
        "/index.html",
        "/ops/docs/../../pyproject.toml",
        "/ops/docs/..%2fpyproject.toml",
        "/js/",
    ):
        assert httpx.get(ops.url + path).status_code in (403, 404)


def test_usage_is_shown_to_whom_it_is_given(open_ops: OpenOps) -> None:
    page = open_ops()
    expect(page.locator("#usage-box")).to_be_hidden()
    rows = [
        {
            "key": f"team {n}",
            "images": n * 100,
            "gpu_seconds": n * 71.0,
            "refusals": n,
            "failures": 0,
        }
        for n in range(1, 23)
    ]
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(json={"object": "list", "by": "key", "data": rows})

    page.route("**/ops/usage?*", answer)
    page.reload()
    expect(page.locator("#usage tbody tr")).to_have_count(20)
    first = page.locator("#usage tbody tr").first.inner_text().split()
    assert first == ["team", "22", "2,200", "26", "m", "2", "s", "22", "0"]
    expect(page.locator("#usage-more")).to_have_text("and 2 more keys")
    assert re.search(r"by=key&since=\d{4}-\d\d-\d\d$", asked[0])
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
