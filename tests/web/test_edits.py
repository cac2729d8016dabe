"""Drawings that go on from a picture: one that is dropped, or one of the gallery."""

import io

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.web.conftest import PHONE, OpenPage, forgive
from tests.web.fake_cell import FIRST_SEED, FakeCell, Refuse
from tests.web.fake_store import FakeJob
from tests.web.landscapes import encoded, landscape
from tests.web.test_draw import draw
from tests.web.test_library import SPEC, drop
from tests.web.test_page import AXE, RUN
from worker.generation.imaging import encode, parameters_text

pytestmark = pytest.mark.browser

STREET = encoded(landscape("a street", 1, 320, 192))


INK = {"name": "ink", "scale": 0.5}


def set_strength(page: Page, strength: str) -> None:
    page.get_by_label("Strength").evaluate(
        """(slider, value) => {
            slider.value = value;
            slider.dispatchEvent(new Event("input", { bubbles: true }));
        }""",
        strength,
    )


def size_of(data: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(data)).size


def test_a_dropped_picture_is_drawn_from_as_it_was_sent(
    cell: FakeCell, open_page: OpenPage
) -> None:
    page = open_page()
    drop(page, STREET)
    expect(page.locator("#source")).to_contain_text("320 × 192")
    expect(page.locator("#strength-value")).to_have_text("60 %")
    draw(page, "snow", n=2)
    expect(page.locator("[data-face=picture]")).to_have_count(2)
    set_strength(page, "0.3")
    draw(page, "rain")
    expect(page.locator("[data-face=picture]")).to_have_count(3)
    common = {"size": "320x192", "output_format": "png", "stream": True, "partial_images": 3}
    assert cell.requests == [
        {"prompt": "snow", "n": 2, **common},
        {"prompt": "rain", "n": 1, "strength": 0.3, **common},
    ]
    assert set(cell.paths) == {"/v1/images/edits"}
    assert cell.files == {"image": STREET}
    page.get_by_role("button", name="Draw without the picture").click()
    draw(page, "sun")
    expect(page.locator("[data-face=picture]")).to_have_count(4)
    assert (cell.paths[-1], cell.requests[-1]["size"]) == ("/v1/images/generations", "256x256")


def test_a_picture_that_tells_its_settings_is_asked_about(
    cell: FakeCell, open_page: OpenPage
) -> None:
    page = open_page()
    pixels = np.zeros((64, 128, 3), np.uint8)
    data = encode(pixels, "png", None, parameters_text(SPEC, "tiny"))
    drop(page, data)
    page.evaluate(AXE)
    assert page.evaluate(RUN) == []
    held = "(event) => event.stopPropagation(), { capture: true, once: true }"
    page.evaluate(f"document.addEventListener('close', {held})")
    page.get_by_role("button", name="Close").click()
    expect(page.locator("#prompt")).to_have_value("")
    expect(page.locator("#source")).to_be_hidden()
    drop(page, data)
    # On a busy machine the browser tells that a dialog was closed once the next one could be open.
    page.evaluate("new Promise((resolve) => setTimeout(resolve, 300))")
    page.evaluate("document.querySelector('#choice').dispatchEvent(new Event('close'))")
    page.get_by_role("button", name="Draw from it").click()
    expect(page.locator("#prompt")).to_have_value(SPEC.prompt)
    assert page.evaluate(RUN) == []
    page.locator("#draw").click()
    expect(page.locator("[data-face=picture]")).to_have_count(1)
    assert (cell.files, cell.requests[0]["size"]) == ({"image": data}, "128x64")


def test_picture_and_drawing_outlive_a_reload(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    drop(page, STREET)
    cell.hold_before_step = 2
    draw(page, "snow")
    expect(page.locator("[data-state=drawing]")).to_have_count(1)
    page.reload()
    cell.release()
    expect(page.locator("[data-face=picture]")).to_have_count(1)
    assert [body.get("seed") for body in cell.requests] == [None, FIRST_SEED + 100]
    assert (cell.paths[1], cell.files) == ("/v1/images/edits", {"image": STREET})
    draw(page, "rain")
    expect(page.locator("[data-face=picture]")).to_have_count(2)
    assert cell.files == {"image": STREET}


def test_a_picture_larger_than_is_taken_is_made_smaller(
    cell: FakeCell, open_page: OpenPage
) -> None:
    cell.max_pixels = 256 * 256  # what is drawn is small
    page = open_page()
    large = io.BytesIO()
    Image.new("L", (5000, 3400), 90).save(large, "png")
    drop(page, large.getvalue())
    expect(page.locator("#source")).to_be_visible(timeout=60_000)  # 17 megapixels
    draw(page, "snow")
    expect(page.locator("[data-face=picture]")).to_have_count(1)
    width, height = size_of(cell.files["image"])
    assert width * height <= 4096 * 4096
    assert width / height == pytest.approx(5000 / 3400, abs=0.01)


def test_a_job_goes_on_from_a_picture_that_is_sent_once(
    cell: FakeCell, open_page: OpenPage
) -> None:
    page = open_page(locale="zh-CN", **PHONE)
    drop(page, STREET)
    expect(page.locator("#source")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.locator("#source-paint").tap()
    page.locator("#mask-canvas").tap()
    page.locator("#mask-done").tap()
    expect(page.locator("#source-mask")).to_be_visible()
    page.locator("#strength").focus()
    page.keyboard.press("ArrowLeft")
    page.locator("#prompt").fill("snow")
    page.locator("#n").fill("11")
    expect(page.locator("#as-job")).to_be_visible()
    page.locator("#draw").tap()
    expect(page.locator("#job-grid .card")).to_have_count(11)
    page.locator("#modes label").nth(1).tap()
    page.locator("#template").fill("{雪|雨}")
    expect(page.locator("#draw-label")).to_have_text("绘制 22 张图")
    page.locator("#draw").tap()
    expect(page.locator("#job-grid .card")).to_have_count(22)
    image, mask = cell.store.uploads
    assert cell.store.uploads[image] == STREET
    assert size_of(cell.store.uploads[mask]) == (320, 192)
    assert cell.requests == []
    said = {"image": image, "mask": mask, "strength": 0.95, "size": "320x192"}
    assert [body.items() >= said.items() for body in cell.store.bodies] == [True, True]
    cell.store.finish(cell.store.jobs["job_2"], 1)
    page.locator("#job-grid .open").tap()
    page.locator("[data-action=compare]").tap()
    expect(page.locator("#compare-divider")).to_be_visible()


def test_what_a_job_was_drawn_from_is_known_in_another_browser(
    cell: FakeCell, open_page: OpenPage
) -> None:
    store = cell.store
    store.uploads = {"upload_1": STREET, "upload_2": STREET}
    from_upload = {"prompt": "snow", "size": "400x192", "image": "upload_1", "mask": "upload_2"}
    body = {**from_upload, "strength": 0.8, "fit": "extend", "position": "80,0"}
    store.jobs["job_1"] = FakeJob("job_1", body, [])
    drawn = {"job": {"id": "job_1", "number": 1}, "image_sha256": "5" * 64}
    store.keep("img_1", body, 7, 8, **drawn)
    store.keep("f" * 32 + "-0", {"prompt": "rain", "size": "64x64"}, 7, 8, image_sha256="5" * 64)
    page = open_page()
    card = page.locator("#grid .card", has_text="snow")
    card.locator(".open").click()
    page.keyboard.press("b")
    expect(page.locator("#compare")).to_be_visible()
    reuse_what_was_extended_to_the_left(page)
    expect(page.get_by_role("radio", name="Left", exact=True)).to_be_checked()
    page.locator("#grid .card", has_text="rain").locator(".open").click()
    expect(page.get_by_role("button", name="Before / after")).to_have_count(0)
    page.keyboard.press("r")  # what nobody knows is told
    expect(page.locator(".toast")).to_contain_text("without the picture that it was drawn from")
    expect(page.locator("#source")).to_be_hidden()


def reuse_what_was_extended_to_the_left(page: Page) -> None:
    """Of the picture that is compared with what was there before, a fifth is new."""
    before, whole = (page.locator(i).bounding_box() for i in ("#compare-before", "#compare"))
    assert before
    assert whole
    assert before["x"] == pytest.approx(whole["x"] + whole["width"] * 0.2, abs=1)
    page.keyboard.press("r")
    expect(page.locator("#source-mask")).to_be_visible()
    expect(page.locator("#strength-value")).to_have_text("80 %")


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_what_a_picture_was_drawn_from_is_known_in_another_browser(
    cell: FakeCell, open_page: OpenPage, locale: str
) -> None:
    store = cell.store
    store.uploads = {"upload_1": STREET, "upload_2": STREET}
    told = {"image": "upload_1", "mask": "upload_2", "fit": "extend", "position": "80,0"}
    digests = {"image_sha256": "5" * 64, "mask_sha256": "6" * 64}
    for k, (prompt, drawn_from) in enumerate(
        [
            ("snow", told),
            ("rain", {**told, "mask": None, "fit": "cover", "position": None}),
        ]
    ):
        body = {"prompt": prompt, "size": "400x192"}
        id = f"{k}" * 32 + "-0"
        store.keep(id, body, 7, 8, strength=0.8, drawn_from=drawn_from, **digests)
    page = open_page(locale=locale, **PHONE)
    page.locator("#grid .card", has_text="snow").locator(".open").tap()
    page.locator("[data-action=compare]").tap()
    expect(page.locator("#compare-divider")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    reuse_what_was_extended_to_the_left(page)
    page.locator("#grid .card", has_text="rain").locator(".open").tap()
    page.locator("[data-action=compare]").tap()
    expect(page.locator("#compare-divider")).to_be_visible()
    page.keyboard.press("r")  # nobody has its mask: all of the picture would be drawn anew
    expect(page.locator("#source")).to_be_hidden()


def test_a_job_whose_picture_cannot_be_sent_is_not_made(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page()
    drop(page, STREET)
    expect(page.locator("#source")).to_be_visible()
    told = {"error": {"message": "1,000 uploads of yours.", "code": "rate_limit_exceeded"}}
    page.route("**/v1/uploads", lambda route: route.fulfill(status=429, json=told))
    draw(page, "snow", n=11)
    expect(page.locator("#error-form")).to_have_text("1,000 uploads of yours.")
    assert cell.store.bodies == []
    forgive(page, complaints, "429")


def test_before_and_after_are_compared_in_the_full_view(
    cell: FakeCell, open_page: OpenPage
) -> None:
    page = open_page()
    drop(page, STREET)
    draw(page, "snow")
    page.locator("#grid .open").click()
    expect(page.locator("#viewer-meta")).to_contain_text("4 steps")  # three of them were drawn
    page.keyboard.press("b")
    divider = page.get_by_label("How much of the picture before is seen")
    expect(divider).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(divider).to_have_value("49")
    before = page.locator("#compare-before")
    expect(before).to_have_js_property("naturalWidth", 320)
    expect(before).to_have_js_property("naturalHeight", 192)
    page.evaluate(AXE)
    assert page.evaluate(RUN) == []
    page.keyboard.press("b")
    expect(divider).to_be_hidden()
    page.reload()  # the gallery's pictures know it, too
    page.locator("#grid .open").click()
    page.get_by_role("button", name="Before / after").click()
    expect(divider).to_be_visible()


def test_more_like_a_picture_are_drawn_from_its_id_and_settings(
    cell: FakeCell, open_page: OpenPage
) -> None:
    cell.store.keep("f" * 32 + "-0", {"prompt": "a fox", "size": "64x96"}, 5, 8)
    page = open_page()
    page.locator("#grid .frame").hover()
    page.get_by_role("button", name="More like this").click()
    expect(page.locator("[data-face=picture]")).to_have_count(5)
    assert cell.paths == ["/v1/images/variations"]
    like = {"image": "f" * 32 + "-0", "prompt": "a fox", "n": 4, "size": "64x96", "steps": 8}
    assert cell.requests[0].items() >= like.items()
    assert "seed" not in cell.requests[0]


def test_a_picture_is_made_twice_as_large(
    cell: FakeCell, open_page: OpenPage, complaints: list[str]
) -> None:
    cell.max_pixels = 64 * 96
    small = "f" * 32 + "-0"
    cell.store.keep(small, {"prompt": "a fox", "size": "64x96", "lora": [INK]}, 5, 8)
    page = open_page()
    page.locator("#grid .open").click()
    cell.position, cell.hold_before_step = 1, 0
    page.keyboard.press("u")
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator(".card").first).to_contain_text("1 ahead in the queue")
    expect(page.locator(".card").first).to_contain_text("about 6 s")
    cell.release()
    expect(page.locator("[data-face=picture]")).to_have_count(2)
    said = {"image": small, "prompt": "a fox", "output_format": "png", "stream": True}
    assert cell.requests == [{**said, "guidance_scale": 0.0, "lora": [INK]}]
    assert cell.paths == ["/v1/images/upscale"]
    page.locator("#grid .open").first.click()
    expect(page.locator("#viewer-meta")).to_contain_text("128 × 192")
    page.keyboard.press("b")
    shown = page.locator("#compare-before")
    assert shown.evaluate("i => i.decode().then(() => i.naturalHeight)") == 96
    expect(page.get_by_role("button", name="Upscale 2×")).to_have_count(0)  # 4 times as large
    page.keyboard.press("r")
    expect(page.locator(".ratio:has(:checked)")).to_contain_text("64 × 96")  # what can be drawn
    expect(page.locator("#source")).to_be_hidden()
    page.locator("#grid .open").last.click()
    cell.faults.append(Refuse(400, "It is gone.", param="image"))
    page.get_by_role("button", name="Upscale 2×").click()
    expect(page.locator("[data-face=failed]")).to_contain_text("It is gone.")
    expect(page.locator("#error-image")).to_be_empty()  # the form has not asked for it
    forgive(page, complaints, "400")


def test_a_picture_of_the_gallery_is_drawn_from(cell: FakeCell, open_page: OpenPage) -> None:
    cell.store.keep("f" * 32 + "-0", {"prompt": "a fox", "size": "64x96"}, 5, 8)
    page = open_page()
    page.locator("#grid .open").click()
    page.keyboard.press("e")
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#prompt")).to_be_focused()
    expect(page.locator("#prompt")).to_have_value("a fox")
    shown = page.locator("#source-image")
    assert shown.evaluate("i => i.decode().then(() => i.naturalHeight)") == 96
    draw(page, "a wolf")
    expect(page.locator("[data-face=picture]")).to_have_count(2)
    assert (cell.requests[0]["image"], cell.files) == ("f" * 32 + "-0", {})
    page.locator("#grid .open").first.click()
    page.keyboard.press("r")
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#source")).to_be_visible()


def test_what_the_model_cannot_do_is_not_offered(cell: FakeCell, open_page: OpenPage) -> None:
    cell.edits = False
    cell.store.keep("f" * 32 + "-0", {"prompt": "a fox", "size": "64x96"}, 5, 8)
    page = open_page()
    page.locator("#grid .frame").hover()
    expect(page.get_by_role("button", name="Reuse settings")).to_be_visible()
    expect(page.get_by_role("button", name="More like this")).to_have_count(0)
    page.locator("#grid .open").click()
    expect(page.get_by_role("button", name="Delete")).to_be_visible()
    expect(page.get_by_role("button", name="Upscale 2×")).to_have_count(0)
    page.keyboard.press("Escape")
    drop(page, STREET)
    expect(page.locator("#toasts")).to_contain_text("does not say how it was drawn")
    expect(page.locator("#source")).to_be_hidden()


def test_what_was_set_for_a_model_that_could_is_not_sent_to_one_that_cannot(
    cell: FakeCell, open_page: OpenPage
) -> None:
    page = open_page()
    drop(page, STREET)
    expect(page.get_by_role("button", name="Paint a part")).to_be_visible()
    cell.masks = False
    page.reload()
    expect(page.locator("#model")).not_to_be_empty()
    expect(page.locator("#source")).to_be_visible()
    expect(page.get_by_role("button", name="Paint a part")).to_be_hidden()
    cell.edits = False
    page.reload()
    expect(page.locator("#source")).to_be_hidden()
    draw(page, "snow")
    expect(page.locator("[data-face=picture]")).to_have_count(1)
    assert (cell.paths, cell.requests[0]["size"]) == (["/v1/images/generations"], "256x256")


def painting(page: Page) -> None:
    """The editor of a picture that was dropped."""
    drop(page, STREET)
    page.get_by_role("button", name="Paint a part").click()
    expect(page.get_by_label("The picture to paint on")).to_be_focused()


def mask_sent(page: Page, cell: FakeCell) -> np.ndarray:
    page.get_by_role("button", name="Done").click()
    expect(page.locator("#mask-editor")).to_be_hidden()
    expect(page.locator("#strength-value")).to_have_text("100 %")
    drawn = page.locator("[data-face=picture]")
    before = drawn.count()
    draw(page, "a tram")
    expect(drawn).to_have_count(before + 1)
    image = Image.open(io.BytesIO(cell.files["mask"]))
    assert (image.size, image.getextrema()[3:]) == ((320, 192), ((255, 255),))  # opaque
    return np.asarray(image.convert("L"))


def test_what_a_pointer_paints_is_white_in_the_mask(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    painting(page)
    page.evaluate(AXE)
    assert page.evaluate(RUN) == []
    box = page.locator("#mask-canvas").bounding_box()
    assert box

    def stroke(y: float) -> None:
        page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] * y)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 3 / 4, box["y"] + box["height"] * y, steps=4)
        page.mouse.up()

    stroke(0.25)
    stroke(0.75)
    page.keyboard.press("Control+z")
    expect(page.get_by_role("status").get_by_text("is drawn anew")).to_be_visible()
    mask = mask_sent(page, cell)
    assert (mask[48, 90:230] == 255).all()  # the stroke that stands
    assert (mask[140:] == 0).all()  # the one that was undone
    assert (mask[:, :40] == 0).all()
    page.reload()  # the mask is painted on after a reload, too
    expect(page.locator("#source-mask")).to_be_visible()
    page.get_by_role("button", name="Paint a part").click()
    page.get_by_role("button", name="Invert").click()
    turned = mask_sent(page, cell).astype(int)
    assert np.abs(turned + mask - 255).max() <= 2
    page.get_by_role("button", name="Paint a part").click()
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#mask-told")).to_have_text("Nothing is painted yet")
    page.keyboard.press("Escape")
    expect(page.locator("#source-mask")).to_be_hidden()
    expect(page.locator("#strength-value")).to_have_text("60 %")


def test_keys_alone_paint_a_mask(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    painting(page)
    keys = page.keyboard
    for key in ["]", "]", "ArrowUp", "Shift+ArrowLeft"]:
        keys.press(key)
    keys.down(" ")
    keys.press("Shift+ArrowRight")
    keys.up(" ")
    keys.press("Shift+ArrowRight")  # the brush is up again
    for _ in range(2):
        keys.press("Control+z")
        expect(page.locator("#mask-undo")).to_be_disabled()
        keys.press("Control+Shift+z")
        expect(page.locator("#mask-redo")).to_be_disabled()
    mask = mask_sent(page, cell)
    radius = 30 / 400 * 320
    row = round(96 - radius / 2)
    left = round(160 - 2 * radius)
    assert (mask[row, left:160] == 255).all()
    assert (mask[row, 190:] == 0).all()


def test_a_finger_paints_on_a_phone_without_sideways_scrolling(
    cell: FakeCell, open_page: OpenPage
) -> None:
    page = open_page(locale="zh-CN", **PHONE)
    drop(page, STREET)
    page.locator("#source-paint").tap()
    expect(page.locator("#mask-canvas")).to_be_focused()
    assert page.evaluate("document.querySelector('#mask-editor').scrollWidth") == 360
    small = page.locator("#mask-editor button:visible").evaluate_all(
        "all => all.map((e) => e.getBoundingClientRect()).filter((r) => r.height < 40)"
    )
    assert small == []
    page.locator("#mask-canvas").tap()
    expect(page.locator("#mask-told")).to_contain_text("将重绘")
    page.go_back()  # leaves the editor, and keeps what is painted
    expect(page.locator("#mask-editor")).to_be_hidden()
    expect(page.locator("#source-mask")).to_be_visible()


def test_a_picture_is_extended_by_what_is_around_it(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    drop(page, STREET)
    page.get_by_role("radio", name="Extend the picture").check()
    expect(page.locator("#strength-value")).to_have_text("100 %")
    expect(page.locator(".ratio:has(:checked)")).to_have_text("All around400 × 240")
    draw(page, "a wide street")
    expect(page.locator("[data-face=picture]")).to_have_count(1)
    page.get_by_role("radio", name="1:1").check(force=True)
    draw(page, "a high street")
    expect(page.locator("[data-face=picture]")).to_have_count(2)
    assert [(b["fit"], b["size"]) for b in cell.requests] == [
        ("extend", "400x240"),
        ("extend", "320x320"),
    ]
    page.evaluate(AXE)
    assert page.evaluate(RUN) == []
    page.get_by_role("radio", name="All around", exact=True).focus()
    page.keyboard.press("ArrowRight")  # to the left
    page.keyboard.press("ArrowRight")
    page.locator(".ratio[data-ratio=source]").click()
    expect(page.locator(".ratio:has(:checked)")).to_have_text("Right400 × 192")
    draw(page, "a long street")
    expect(page.locator("[data-face=picture]")).to_have_count(3)
    page.get_by_role("radio", name="Up", exact=True).check(force=True)
    draw(page, "a sky", n=11)
    expect(page.locator("#job-grid .card")).to_have_count(11)
    placed = [cell.requests[2], cell.store.bodies[0]]
    assert [(b["size"], b["position"]) for b in placed] == [("400x192", "0,0"), ("320x240", "0,48")]
    page.locator("[data-view=gallery]").click()
    page.locator("#grid .open").first.click()
    page.keyboard.press("b")
    expect(page.locator("#compare")).to_be_visible()
    before, whole = (page.locator(i).bounding_box() for i in ("#compare-before", "#compare"))
    assert before
    assert whole
    assert (before["x"], before["y"]) == pytest.approx((whole["x"], whole["y"]), abs=1)
    assert before["width"] == pytest.approx(whole["width"] * 0.8, abs=1)
    page.keyboard.press("Escape")
    page.get_by_role("radio", name="All around", exact=True).check(force=True)
    page.locator(".ratio", has_text="Custom").click()
    page.get_by_label("Width").fill("320")
    page.get_by_label("Height").fill("192")
    page.locator("#draw").click()
    expect(page.locator("#error-size")).to_contain_text("Nothing is left around")
    page.get_by_role("radio", name="Fill the size").check()
    page.get_by_label("Variants", exact=True).fill("1")
    page.locator("#draw").click()
    expect(page.locator("#grid [data-face=picture]")).to_have_count(4)
    assert cell.requests[3].keys().isdisjoint({"fit", "position"})


def test_a_picture_without_room_around_it_is_made_smaller(
    cell: FakeCell, open_page: OpenPage
) -> None:
    cell.max_pixels = 256 * 256
    page = open_page()
    drop(page, STREET)
    page.get_by_role("radio", name="Extend the picture").check()
    expect(page.locator("#source-size")).not_to_have_text("320 × 192")
    draw(page, "a wide street")
    expect(page.locator("[data-face=picture]")).to_have_count(1)
    width, height = map(int, cell.requests[0]["size"].split("x"))
    wide, high = size_of(cell.files["image"])
    assert wide < width
    assert high < height
    assert width * height <= cell.max_pixels
    page.get_by_role("radio", name="Fill the size").check()
    expect(page.locator("#source-size")).to_have_text("320 × 192")


def test_old_pictures_go_but_never_the_forms_own(cell: FakeCell, open_page: OpenPage) -> None:
    page = open_page()
    drop(page, STREET)
    expect(page.locator("#source")).to_be_visible()
    old = page.evaluate(
        """async () => {
            const { keep } = await import("/js/stash.js");
            const old = await keep(new Blob(["old"]));
            for (let k = 0; k < 45; k++) await keep(new Blob(["mask"]));
            return old;
        }"""
    )
    page.reload()
    find = "async (key) => (await import('/js/stash.js')).find(key)"
    assert page.evaluate(find, old) is None
    draw(page, "snow")
    expect(page.locator("[data-face=picture]")).to_have_count(1)
    assert cell.files == {"image": STREET}
