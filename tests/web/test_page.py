"""The page as a whole: languages, themes, keyboard, small screens, accessibility, health."""

import re
from importlib import resources

import pytest
from playwright.sync_api import expect

from tests.web.conftest import PHONE, OpenPage, forgive
from tests.web.fake_cell import WEB, FakeCell
from tests.web.test_draw import draw

pytestmark = pytest.mark.browser

AXE = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
RUN = "axe.run().then((r) => r.violations.map((v) => [v.id, v.nodes.map((n) => n.html)]))"


def test_a_picture_is_drawn_with_the_keyboard_alone(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "prompt":
            break
    page.keyboard.type("a hill")
    page.keyboard.press("Control+Enter")
    expect(page.locator("[data-face=picture]")).to_have_count(1)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "open":
            break
    page.keyboard.press("Enter")
    expect(page.locator("#viewer")).to_be_visible()
    assert len(cell.requests) == 1


def test_what_would_come_from_elsewhere_is_complained_of(
    open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page()
    page.evaluate("new Image().src = 'http://elsewhere.invalid/a.png'")
    forgive(page, complaints, "Content Security Policy")


def test_focus_is_visible_on_every_control(open_page: OpenPage) -> None:
    page = open_page()
    unmarked = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        unmarked.add(
            page.evaluate(
                """() => {
                    const at = document.activeElement;
                    if (at === document.body) return null;
                    const marked = [at, at.nextElementSibling, at.parentElement].some(
                        (e) => e && getComputedStyle(e).outlineStyle !== "none");
                    return marked ? null : at.outerHTML.slice(0, 80);
                }"""
            )
        )
    assert unmarked == {None}


@pytest.mark.parametrize(
    ("locale", "language", "word"), [("zh-TW", "zh-CN", "开始绘制"), ("de-DE", "en", "Draw")]
)
def test_the_language_follows_the_browser(
    open_page: OpenPage, locale: str, language: str, word: str
) -> None:
    page = open_page(locale=locale)
    expect(page.locator("html")).to_have_attribute("lang", language)
    expect(page.locator("#draw-label")).to_have_text(word)


def test_the_chosen_language_is_remembered(open_page: OpenPage) -> None:
    page = open_page()
    draw(page, "a hill")
    page.get_by_role("button", name="切换到中文").click()
    expect(page.locator("#draw-label")).to_have_text("绘制 1 张图")
    expect(page.get_by_role("button", name=re.compile("打开：a hill"))).to_have_count(1)
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")


def test_every_word_exists_in_both_languages(open_page: OpenPage) -> None:
    page = open_page()
    strings = page.evaluate("import('/js/i18n.js').then((m) => m.STRINGS)")
    for key, (english, chinese) in strings.items():
        assert english.strip(), key
        assert chinese.strip(), key
        names = [set(re.findall(r"\{\w+\}", text)) for text in (english, chinese)]
        assert names[0] == names[1], key


def test_every_used_word_is_in_the_table_and_none_is_left_over(open_page: OpenPage) -> None:
    page = open_page()
    keys = set(page.evaluate("import('/js/i18n.js').then((m) => Object.keys(m.STRINGS))"))
    html = (WEB / "index.html").read_text()
    scripts = "".join(path.read_text() for path in (WEB / "js").glob("*.js"))
    used = set(re.findall(r'data-i18n="(\w+)"', html))
    for pairs in re.findall(r'data-i18n-attr="([^"]+)"', html):
        used |= {pair.split(":")[1] for pair in pairs.split(";")}
    assert used | set(re.findall(r'\bt\("(\w+)"', scripts)) <= keys
    quoted = used | set(re.findall(r'"(\w+)"', scripts))
    made = ("state_", "usage_", "key_", "model_", "error_", "reason_")  # of what the server says
    assert {key for key in keys - quoted if not key.startswith(made)} == set()


def test_the_theme_follows_the_system_until_it_is_switched(open_page: OpenPage) -> None:
    page = open_page(color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(246, 245, 242)"
    page.get_by_role("button", name="Dark theme").click()
    assert page.evaluate(background) == "rgb(15, 16, 19)"
    page.reload()
    assert page.evaluate(background) == "rgb(15, 16, 19)"


@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
def test_a_phone_of_360_pixels_needs_no_sideways_scrolling(
    cell: FakeCell, open_page: OpenPage, locale: str
) -> None:
    page = open_page(locale=locale, **PHONE)
    cell.hold_before_step = 2
    page.locator("#prompt").fill("a hill with a very long description that must be cut off\nb")
    page.locator("#advanced summary").tap()
    page.locator("#draw").tap()
    expect(page.locator("[data-state=drawing]")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    cell.release()
    page.locator(".open").first.tap()
    expect(page.locator("#viewer")).to_be_visible()
    assert page.evaluate("document.querySelector('#viewer').scrollWidth") == 360


@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
def test_no_view_of_a_phone_scrolls_sideways(
    cell: FakeCell, open_page: OpenPage, locale: str
) -> None:
    cell.store.key = "secret"
    page = open_page(locale=locale, **PHONE)
    width = "document.documentElement.scrollWidth"
    expect(page.locator("#sign-in")).to_be_visible()
    assert page.evaluate(width) == 360
    page.locator("#key").fill("secret")
    page.keyboard.press("Enter")
    page.locator("#account summary").tap()
    expect(page.locator("#account-facts")).not_to_be_empty()
    assert page.evaluate(width) == 360
    page.locator("#account summary").tap()
    page.locator("#modes label").nth(1).tap()
    page.locator("#template-example").tap()
    page.locator("#advanced").evaluate("details => details.open = true")
    page.locator("#name").fill("n" * 120)
    page.locator("#draw").tap()
    expect(page.locator("#job-grid .card")).to_have_count(24)
    job = cell.store.jobs["job_1"]
    cell.store.finish(job, 1)
    cell.store.fail(job, 2, "unbreakable" * 20)
    expect(page.locator("#job-grid [data-face=failed]")).to_have_count(1)
    assert page.evaluate(width) == 360
    for view in ("jobs", "usage", "gallery"):
        page.locator(f".tabs [data-view={view}]").tap()
        expect(page.locator(f"#view-{view}")).to_be_visible()
        assert page.evaluate(width) == 360, view
    page.locator("#grid .open").tap()
    page.keyboard.press("Delete")
    expect(page.locator(".toast.acting")).to_be_visible()
    assert page.evaluate(width) == 360


def test_touch_targets_are_large_enough(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page(**PHONE)
    cell.hold_before_step = 2
    page.locator("#prompt").fill("a hill")
    page.locator("#advanced summary").tap()
    page.locator("#draw").tap()
    expect(page.locator("[data-state=drawing]")).to_have_count(1)
    small = page.evaluate(
        """() => ["button", "summary", "select", "textarea", "label:has(input)", "input"]
            .flatMap((name) => [...document.querySelectorAll(name)])
            .filter((e) => e.checkVisibility() && !e.closest("label input"))
            .map((e) => [e, e.getBoundingClientRect()])
            .filter(([e, { width, height }]) => width < 40 || height < 40)
            .map(([e]) => e.outerHTML.slice(0, 80))"""
    )
    assert small == []


def test_health_shows_the_pool_and_its_workers(cell: FakeCell, open_page: OpenPage) -> None:
    cell.open_workers = 2
    page = open_page()
    expect(page.locator("#health-text")).to_have_text("2 of 3 workers ready")
    page.locator("#health summary").click()
    expect(page.locator("#health-workers li").nth(2)).to_contain_text("w3loading")


def test_a_hidden_page_does_not_poll(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    expect(page.locator("#health")).to_have_attribute("data-level", "good")
    page.clock.install()
    page.evaluate(
        """() => {
            Object.defineProperty(document, "hidden", { value: true, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    before = cell.cell_polls
    page.clock.run_for(60_000)
    assert cell.cell_polls == before
    page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    with page.expect_response("**/cell.json"):
        page.clock.run_for(100)


def test_progress_is_announced(open_page: OpenPage) -> None:
    page = open_page()
    draw(page, "a hill", n=2)
    expect(page.locator("[aria-live=polite]")).to_have_text("2 of 2 drawn")


def test_what_the_policy_forbids_is_noticed(open_page: OpenPage, complaints: list[str]) -> None:
    page = open_page()
    page.evaluate("document.body.setAttribute('style', 'color: red')")
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: '1'}))"
    )
    assert len([text for text in complaints if "Content Security Policy" in text]) == 2
    complaints.clear()


@pytest.mark.parametrize("color_scheme", ["dark", "light"])
def test_axe_finds_nothing_to_mend(cell: FakeCell, open_page: OpenPage, color_scheme: str) -> None:
    page = open_page(color_scheme=color_scheme)
    draw(page, "a hill", n=2)
    expect(page.locator("[data-face=picture]")).to_have_count(2)
    draw(page, " ")
    page.locator("#advanced summary").click()
    page.locator("#history summary").click()
    cell.hold_before_step = 2
    draw(page, "a lake\na hill")
    expect(page.locator("[data-state=drawing]")).to_have_count(2)
    page.evaluate(AXE)
    assert page.evaluate(RUN) == []
    page.locator(".open").first.click()
    assert page.evaluate(RUN) == []


@pytest.mark.parametrize("color_scheme", ["dark", "light"])
def test_axe_finds_nothing_to_mend_in_jobs_and_usage(
    cell: FakeCell, open_page: OpenPage, color_scheme: str
) -> None:
    page = open_page(color_scheme=color_scheme)
    page.evaluate(AXE)
    page.get_by_role("radio", name="Template").check()
    page.get_by_role("button", name="Example").click()
    expect(page.locator("#draw-label")).to_have_text("Draw 24 pictures")
    assert page.evaluate(RUN) == []
    page.locator("#draw").click()
    expect(page.locator("#job-grid .card")).to_have_count(24)
    job = cell.store.jobs["job_1"]
    cell.store.finish(job, 1, 2)
    cell.store.step(job, 3, 1)
    cell.store.fail(job, 4, "Not this one.")
    expect(page.locator("#job-grid [data-face=failed]")).to_have_count(1)
    assert page.evaluate(RUN) == []
    for view in ("jobs", "usage", "gallery"):
        page.locator(f".tabs [data-view={view}]").click()
        expect(page.locator(f"#view-{view}")).to_be_visible()
        page.wait_for_timeout(200)
        assert page.evaluate(RUN) == []


def test_axe_finds_nothing_to_mend_in_signing_in(cell: FakeCell, open_page: OpenPage) -> None:
    cell.store.key = "secret"
    page = open_page()
    expect(page.locator("#sign-in")).to_be_visible()
    page.evaluate(AXE)
    assert page.evaluate(RUN) == []
