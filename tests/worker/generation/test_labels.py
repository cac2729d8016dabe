"""Labels of generated pictures: people see the mark, programs read the record."""

import io
import json
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from deploy.config import parse
from tests.worker.generation.test_imaging import noise, opened
from worker.generation.imaging import Encoders, encode
from worker.generation.labels import FONT, MIN_LETTER_SHARE, Labels
from worker.types import Pixels

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
AIGC = "{http://www.tc260.org.cn/ns/AIGC/1.0/}AIGC"
FIELDS = (
    *("Label", "ContentProducer", "ProduceID", "ReservedCode1"),
    *("ContentPropagator", "PropagateID", "ReservedCode2"),
)
MARK = Labels(mark="AI生成")


def flat(value: int, width: int = 512, height: int = 512) -> Pixels:
    return np.full((height, width, 3), value, np.uint8)


def record(packet: bytes) -> dict[str, Any]:
    """The AIGC record of an XMP packet, as an XML parser finds it."""
    found = ElementTree.fromstring(packet).find(f"{RDF}RDF/{RDF}Description/{AIGC}")
    assert found is not None
    assert found.text is not None
    return dict(json.loads(found.text))


def packet_in(data: bytes, image_format: str) -> bytes:
    image = opened(data)
    if image_format == "png":
        return str(image.text["XML:com.adobe.xmp"]).encode()
    return bytes(image.info["xmp"])


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_every_format_carries_the_record(image_format: str) -> None:
    xmp = Labels(producer='某公司 <&> "0011"').xmp("0123-2")
    data = encode(noise(), image_format, None, "parameters", xmp)
    found = record(packet_in(data, image_format))
    assert tuple(found) == FIELDS
    assert (found["Label"], found["ProduceID"]) == ("1", "0123-2")
    assert found["ContentProducer"] == '某公司 <&> "0011"'


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_parameters_stay_beside_the_record(image_format: str) -> None:
    plain = opened(encode(noise(), image_format, None, "a fox"))
    labelled = opened(encode(noise(), image_format, None, "a fox", Labels(producer="x").xmp("1")))
    assert labelled.getexif() == plain.getexif()
    if image_format == "png":
        assert labelled.text["parameters"] == "a fox"


def test_nothing_is_labelled_unasked() -> None:
    pixels = noise()
    assert Labels().xmp("1") == b""
    assert Labels().marked(pixels) is pixels
    assert "xmp" not in opened(encode(pixels, "jpeg", None, "p")).info


def test_previews_have_no_record_of_their_own() -> None:
    assert Labels(producer="x").xmp("") == b""


@pytest.mark.parametrize(("width", "height"), [(512, 512), (1024, 256), (256, 1024), (1536, 640)])
@pytest.mark.parametrize("text", ["AI生成", "人工智能生成合成内容", "AI generated"])
def test_letters_are_a_twentieth_of_the_shorter_side(text: str, width: int, height: int) -> None:
    """Each letter by itself, measured in the picture."""
    for letter in set(text) - {" "}:
        alone = Labels(letter).marked(flat(0, width, height))
        rows = np.flatnonzero((alone > 128).any(axis=(1, 2)))
        assert rows[-1] - rows[0] + 1 >= MIN_LETTER_SHARE * min(width, height), letter


def _letters_and_ground(pixels: Pixels) -> tuple[float, float]:
    """Luminance (0 to 1) of the mark's letters and of what is around them in its box."""
    on_black = MARK.marked(flat(0)).max(axis=2)
    light = MARK.marked(pixels).mean(axis=2) / 255
    rows, columns = np.nonzero(on_black > 250)
    box = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
    return float(light[rows, columns].mean()), float(light[box][on_black[box] == 0].mean())


@pytest.mark.parametrize("value", [0, 64, 128, 192, 255])
def test_mark_is_legible_on_every_background(value: int) -> None:
    letters, ground = _letters_and_ground(flat(value))
    as_linear = [((v + 0.055) / 1.055) ** 2.4 for v in (letters, ground)]
    contrast = (as_linear[0] + 0.05) / (as_linear[1] + 0.05)
    assert contrast >= 4.5  # what WCAG asks of text


def test_only_the_corner_changes() -> None:
    pixels = noise(640, 512)
    marked = MARK.marked(pixels)
    rows, columns = np.nonzero((marked != pixels).any(axis=2))
    assert rows.min() > 0.85 * 512
    assert columns.min() > 0.7 * 640
    assert np.array_equal(pixels, noise(640, 512))


@pytest.mark.parametrize("size", [(16, 16), (16, 1024), (48, 64)])
def test_smallest_pictures_are_marked_too(size: tuple[int, int]) -> None:
    marked = Labels("人工智能生成合成内容").marked(flat(255, *size))
    assert marked.shape == (size[1], size[0], 3)
    assert marked.min() < 200


@pytest.mark.anyio
async def test_encoders_label_pictures_and_mark_previews() -> None:
    encoders = Encoders(1, Labels("AI生成", "某公司"))
    picture = await encoders.encode(flat(0), "png", None, "p", produce_id="ab-1")
    preview = await encoders.encode(flat(0), "png", None, "", produce_id="")
    encoders.close()
    assert record(packet_in(picture.data, "png"))["ProduceID"] == "ab-1"
    assert "XML:com.adobe.xmp" not in opened(preview.data).text
    for data in (picture.data, preview.data):
        assert np.asarray(Image.open(io.BytesIO(data))).max() == 255


def test_every_text_that_the_configuration_takes_has_its_letters() -> None:
    from PIL import ImageFont

    font = ImageFont.truetype(FONT, 100)
    blank = font.getmask("\U0010ffff").getbbox()
    allowed = "人工智能生成合内容图像片画由大模型绘制标识辅助作品"
    for letter in allowed + "azAZ09":
        assert parse({"labels": {"mark_text": letter}}).labels.mark_text == letter
        assert font.getmask(letter).getbbox() not in (None, blank)
