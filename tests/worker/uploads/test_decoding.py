"""Pictures of strangers become pixels, or an error that names the field and the remedy."""

import io
import os
import signal
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any

import anyio
import numpy as np
import psutil
import pytest
from PIL import Image, ImageCms

from worker.errors import InvalidRequest, Unavailable
from worker.uploads import decoder_process, decoding
from worker.uploads.decoding import Decoder

pytestmark = pytest.mark.anyio
RED, BLUE = (200, 30, 30), (20, 40, 220)
MANY = 1 << 20


@pytest.fixture
async def decoder() -> AsyncIterator[Decoder]:
    made = Decoder()
    yield made
    await made.close()


def halves(mode: str = "RGB", size: tuple[int, int] = (64, 32)) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image.quantize() if mode == "P" else image.convert(mode)


def saved(image: Image.Image, format: str, **more: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **more)
    return file.getvalue()


def near(pixel: Any, colour: tuple[int, ...], by: int = 12) -> bool:
    return bool(np.abs(np.asarray(pixel, int) - colour).max() <= by)


async def decoded(decoder: Decoder, data: bytes, **more: Any) -> np.ndarray[Any, Any]:
    return await decoder.decode(data, **{"field": "image", "max_pixels": MANY, **more})


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
async def test_pixels_arrive_as_they_are(decoder: Decoder, format: str, mode: str) -> None:
    pixels = await decoded(decoder, saved(halves(mode), format, lossless=True))
    assert pixels.shape == (32, 64, 3)
    assert near(pixels[16, 8], RED, 3)
    assert near(pixels[16, 56], BLUE, 3)


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
async def test_jpeg_is_read_in_print_colours_too(decoder: Decoder, mode: str) -> None:
    pixels = await decoded(decoder, saved(halves(mode), "JPEG", quality=95))
    assert near(pixels[16, 8], RED)
    assert near(pixels[16, 56], BLUE)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "I;16"])
async def test_grey_is_grey_whatever_its_depth(decoder: Decoder, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 0x8000, np.uint16))
    else:
        image = Image.new("L", (8, 8), 255).convert(mode)
    pixels = await decoded(decoder, saved(image, "PNG"))
    assert np.unique(pixels).tolist() == [128 if mode == "I;16" else 255]


async def test_a_photo_is_turned_as_its_exif_says(decoder: Decoder) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    pixels = await decoded(decoder, saved(halves(), "JPEG", quality=95, exif=exif))
    assert pixels.shape == (64, 32, 3)
    assert near(pixels[8, 16], RED)
    assert near(pixels[56, 16], BLUE)


async def test_what_shines_through_is_white_or_kept(decoder: Decoder) -> None:
    image = Image.new("RGBA", (8, 8), (*RED, 0))
    data = saved(image, "PNG")
    assert (await decoded(decoder, data) == 255).all()
    with_alpha = await decoded(decoder, data, alpha=True)
    assert with_alpha.shape == (8, 8, 4)
    assert with_alpha[0, 0, 3] == 0


async def test_colours_of_another_profile_are_seen_as_they_were(decoder: Decoder) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = await decoded(decoder, saved(halves(), "PNG", icc_profile=lab))
    assert near(pixels[16, 8], RED, 3)
    broken = await decoded(decoder, saved(halves(), "PNG", icc_profile=b"none" * 40))
    assert near(broken[16, 8], RED, 3)


def bomb(side: int) -> bytes:
    """A PNG of some bytes that says it has ``side`` squared pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))


FRAMES = [halves(), halves().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
ANIMATED = saved(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:])


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "not a PNG, JPEG or WebP"),
        (b"GIF89a" + bytes(40), "not a PNG, JPEG or WebP"),
        (saved(halves(), "GIF"), "not a PNG, JPEG or WebP"),
        (saved(halves(), "TIFF"), "not a PNG, JPEG or WebP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a PNG, JPEG or WebP"),
        (bomb(60_000), "60000×60000 pixels, more than 1,048,576"),
        (saved(halves(), "PNG")[:-40], "cut off or damaged"),
        (saved(halves(), "JPEG")[:300], "cut off or damaged"),
        (ANIMATED, "animated"),
    ],
    ids=["empty", "gif-head", "gif", "tiff", "eps", "bomb", "cut-png", "cut-jpeg", "animated"],
)
async def test_anything_else_is_refused_with_a_remedy(
    decoder: Decoder, data: bytes, told: str
) -> None:
    with pytest.raises(InvalidRequest, match=told) as refused:
        await decoded(decoder, data, field="mask")
    assert refused.value.param == "mask"
    assert (await decoded(decoder, saved(halves(), "PNG"))).shape == (32, 64, 3), "the next one"


async def test_its_memory_and_time_are_bounded_by_the_kernel(decoder: Decoder) -> None:
    await decoded(decoder, saved(halves(), "PNG"))
    process = psutil.Process(decoder.pid)
    assert process.rlimit(psutil.RLIMIT_AS)[0] == decoder_process.MEMORY_BYTES
    assert process.rlimit(psutil.RLIMIT_CPU)[0] <= 2 * decoder_process.CPU_S
    assert process.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)


async def test_a_picture_that_ends_its_decoder_ends_nothing_else(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = decoder.pid
    monkeypatch.setattr(decoding, "TIMEOUT_S", 0.0)
    with pytest.raises(InvalidRequest, match="too much time or memory"):
        await decoded(decoder, saved(halves(), "PNG"))
    monkeypatch.undo()
    assert (await decoded(decoder, saved(halves(), "PNG"))).shape == (32, 64, 3)
    second = decoder.pid
    assert second != first
    os.kill(second or 0, signal.SIGKILL)
    with pytest.raises(InvalidRequest, match="too much time or memory"):
        await decoded(decoder, saved(halves(), "PNG"))
    assert (await decoded(decoder, saved(halves(), "PNG"))).shape == (32, 64, 3)


async def test_a_client_that_leaves_leaves_no_half_answer(decoder: Decoder) -> None:
    large = saved(halves(size=(1024, 1024)), "PNG")
    await decoded(decoder, saved(halves(), "PNG"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(decoded, decoder, large)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert (await decoded(decoder, saved(halves(), "PNG"))).shape == (32, 64, 3)


async def test_too_many_wait_for_nobody(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_WAITING", 0)
    with pytest.raises(Unavailable):
        await decoded(decoder, saved(halves(), "PNG"))
