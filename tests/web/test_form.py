"""What is typed: checked, remembered, and within the model's limits."""

import pytest
from playwright.sync_api import expect

from tests.web.conftest import OpenPage
from tests.web.fake_cell import FakeCell
from tests.web.test_draw import draw

pytestmark = pytest.mark.browser


def test_what_was_typed_survives_a_reload(open_page: OpenPage) -> None:
    page = open_page()
    page.locator("#prompt").fill("a hill\na lake")
    page.get_by_label("Seed", exact=True).fill("42")
    page.locator(".ratio", has_text="3:2").click()
    page.reload()
    expect(page.locator("#prompt")).to_have_value("a hill\na lake")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("42")
    expect(page.locator("#ratios input:checked")).to_have_value("3:2")


def test_an_empty_prompt_is_refused_before_it_is_sent(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    draw(page, " \n ")
    expect(page.locator("#error-prompt")).to_have_text("Enter a prompt")
    expect(page.locator("#prompt")).to_be_focused()
    page.locator("#prompt").fill("a hill")
    expect(page.locator("#error-prompt")).to_be_empty()
    assert cell.requests == []


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        ("250", "256", "Each side must be a multiple of 16: try 256 × 256."),
        ("2048", "1024", "Too large: at most 1,048,576 pixels, such as 1456 × 720."),
        ("32", "256", "Each side must be at least 64."),
        ("", "256", "Fill in width and height."),
    ],
)
def test_a_custom_size_is_checked(
    open_page: OpenPage, width: str, height: str, message: str
) -> None:
    page = open_page()
    expect(page.locator("#model")).not_to_be_empty()
    page.locator(".ratio", has_text="Custom").click()
    page.get_by_label("Width").fill(width)
    page.get_by_label("Height").fill(height)
    draw(page, "a hill")
    expect(page.locator("#error-size")).to_have_text(message)


@pytest.mark.parametrize(
    ("label", "value", "field"),
    [("Seed", "4294967296", "seed"), ("Seed", "-1", "seed"), ("Steps", "0", "steps")],
)
def test_numbers_out_of_range_are_refused_at_their_field(
    cell: FakeCell, open_page: OpenPage, label: str, value: str, field: str
) -> None:
    page = open_page()
    page.locator("#advanced summary").click()
    page.get_by_label(label, exact=True).fill(value)
    draw(page, "a hill")
    expect(page.locator(f"#error-{field}")).to_contain_text("A whole number")
    assert cell.requests == []


def test_steps_and_format_are_sent(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    page.locator("#advanced summary").click()
    page.get_by_label("Steps", exact=True).fill("6")
    page.get_by_label("File format").select_option("webp")
    draw(page, "a hill")
    expect(page.locator("[data-face=picture]")).to_have_count(1)
    assert (cell.requests[0]["steps"], cell.requests[0]["output_format"]) == (6, "webp")


def test_more_variants_than_a_request_may_have_are_a_job(
    cell: FakeCell, open_page: OpenPage
) -> None:
    page = open_page()
    page.get_by_role("button", name="One variant fewer").click()
    expect(page.get_by_label("Variants", exact=True)).to_have_value("1")
    for _ in range(10):
        page.get_by_role("button", name="One variant more").click()
    expect(page.get_by_label("Variants", exact=True)).to_have_value("11")
    draw(page, "a hill", n=99)
    expect(page.locator("#job-grid .card")).to_have_count(99)
    assert (cell.requests, cell.store.bodies[0]["variants"]) == ([], 99)
    draw(page, "a hill", n=10_001)
    expect(page.locator("#error-n")).to_have_text("Choose 1 to 10,000.")


def test_the_length_of_the_longest_line_is_counted(cell: FakeCell, open_page: OpenPage) -> None:
    cell.max_prompt_tokens = 10
    page = open_page()
    page.locator("#prompt").fill("a hill 🏔\nred, blue and green hills")
    expect(page.locator("#chars")).to_have_text("25 / 4,000 characters  ·  5 / 10 tokens")
    page.locator("#prompt").fill("x" * 5000)
    expect(page.locator("#chars.over")).to_have_text("5,000 / 4,000 characters")
    page.locator("#draw").click()
    expect(page.locator("#error-prompt")).to_have_text("Too long: 5,000 of 4,000 characters")
    assert cell.requests == []


def test_preset_sizes_are_multiples_and_within_the_pixels(open_page: OpenPage) -> None:
    page = open_page()
    sizes = page.evaluate(
        """async () => {
            const { RATIOS, sizeOf, limitsOf } = await import("/js/sizes.js");
            const wide = { default_size: "2048x1024", max_pixels: 500000 };
            const models = [{}, { default_size: "256x256" }, wide].map(limitsOf);
            const sizes = (limits) => RATIOS.map((r) => [...sizeOf(r, limits), limits.maxPixels]);
            return models.flatMap(sizes);
        }"""
    )
    assert len(sizes) == 21
    assert all(w % 16 == h % 16 == 0 and 0 < w * h <= most for w, h, most in sizes)


def test_the_size_of_the_model_is_the_default(cell: FakeCell, open_page: OpenPage) -> None:
    cell.default_size = "768x768"
    page = open_page()
    expect(page.locator(".ratio", has_text="1:1")).to_contain_text("768 × 768")
