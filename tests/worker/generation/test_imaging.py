import base64
import io
import json
import os
import struct
import threading
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.worker.later import Later
from worker.errors import Overloaded
from worker.generation import imaging
from worker.generation.imaging import Encoders, encode, parameters_text
from worker.types import DrawSpec, Parameters, Pixels

SPEC = DrawSpec("ein Fuchs\n狐狸", 7, Parameters(96, 64, 8, 2.5, "blurry"))


def noise(width: int = 96, height: int = 64) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def opened(data: bytes) -> Any:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize(
    "pixels", [noise(), noise(1, 1), noise(17, 3), np.zeros((16, 16, 3), "u1")]
)
def test_png_gives_back_every_pixel(pixels: Pixels) -> None:
    image = opened(encode(pixels, "png", None, "p"))
    assert np.array_equal(np.asarray(image), pixels)
    assert image.mode == "RGB"


def test_png_is_sound_to_a_strict_reader() -> None:
    image = Image.open(io.BytesIO(encode(noise(), "png", None, "p")))
    image.verify()
    kinds = _chunk_kinds(encode(noise(), "png", None, "p"))
    assert kinds == [b"IHDR", b"iTXt", b"IDAT", b"IEND"]


def _chunk_kinds(data: bytes) -> list[bytes]:
    kinds, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kinds.append(data[at + 4 : at + 8])
        at += 12 + length
    return kinds


def test_parameters_say_how_to_draw_it_again() -> None:
    assert parameters_text(SPEC, "tiny") == (
        "ein Fuchs\n狐狸\nNegative prompt: blurry\n"
        "Steps: 8, CFG scale: 2.5, Seed: 7, Size: 96x64, Model: tiny"
    )


@pytest.mark.parametrize(
    ("style", "said"),
    [("", ""), ("ink", "Style: ink, "), ('ink, "old"', r'Style: "ink, \"old\"", ')],
)
def test_parameters_say_later_fields_where_they_were_used(style: str, said: str) -> None:
    how = Later(96, 64, 8, style=style)
    assert parameters_text(DrawSpec("a fox", 7, how), "tiny") == (
        f"a fox\nSteps: 8, CFG scale: 0, Seed: 7, Size: 96x64, {said}Model: tiny"
    )


def test_png_carries_its_parameters() -> None:
    text = parameters_text(SPEC, "tiny")
    assert opened(encode(noise(), "png", None, text)).text["parameters"] == text


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_jpeg_and_webp_carry_their_parameters(image_format: str) -> None:
    text = parameters_text(SPEC, "tiny")
    image = opened(encode(noise(), image_format, None, text))
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment.removeprefix(b"UNICODE\0").decode("utf-16-be") == text


def test_a_jpeg_holds_up_no_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow encodes without the interpreter's lock only where it is given a descriptor."""
    descriptors = []
    save = Image.Image.save

    def watched(image: Image.Image, file: Any, *args: Any, **options: Any) -> None:
        descriptors.append(file.fileno())
        save(image, file, *args, **options)

    monkeypatch.setattr(Image.Image, "save", watched)
    data = encode(noise(), "jpeg", 95, "p")
    plain = io.BytesIO()
    save(Image.fromarray(noise()), plain, "jpeg", quality=95, exif=imaging._exif("p"))
    assert data == plain.getvalue()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptors[0])  # none stays open


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_longest_prompt_and_odd_characters_still_make_a_file(image_format: str) -> None:
    text = "狐\0😀" * 40_000 + "Seed: 7"
    assert opened(encode(noise(), image_format, None, text)).size == (96, 64)


@pytest.mark.parametrize("quality", [0, 100])
@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_every_quality_makes_a_file(image_format: str, quality: int) -> None:
    assert opened(encode(noise(), image_format, quality, "")).size == (96, 64)


@pytest.mark.anyio
async def test_pool_encodes_with_base64() -> None:
    encoders = Encoders(2)
    picture = await encoders.encode(noise(), "png", None, "p", produce_id="x-0")
    assert base64.b64decode(picture.b64) == picture.data
    encoders.close()


def test_drawing_must_not_run_far_ahead_of_encoding() -> None:
    encoders, free = Encoders(1), threading.Event()
    for _ in range(imaging.MAX_WAITING_PICTURES):
        encoders.require_room()
        encoders.begin(lambda: free.wait(30))
    with pytest.raises(Overloaded):
        encoders.require_room()
    free.set()
    encoders.close()


def test_base64_is_spliced_into_json_unchanged() -> None:
    from worker.api.answers import with_b64

    b64 = base64.b64encode(bytes(range(256)) * 10)
    assert json.loads(b"".join(with_b64({"seed": 1}, b64))) == {"seed": 1, "b64_json": b64.decode()}
