"""Pictures from anywhere: settings are found, and nothing that is none keeps the page busy."""

import base64
import struct
import zlib

import pytest

from tests.web.conftest import OpenPage

pytestmark = pytest.mark.timeout(90)

TEXT = "a fox\nNegative prompt: grey\nSteps: 8, CFG scale: 0, Seed: 5, Size: 64x32\n"
SETTINGS = {
    "prompt": "a fox",
    "negative_prompt": "grey",
    "steps": 8,
    "guidance_scale": 0,
    "seed": 5,
    "width": 64,
    "height": 32,
}
LONG = "x" * 2**20 + "\n" + TEXT
READ = """async (base64) => {
    const { settingsOf } = await import("/js/metadata.js");
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    return settingsOf(new File([bytes], "picture"));
}"""


def chunk(kind: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    told = len(data) if length is None else length
    return struct.pack(">I", told) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def plain(text: str) -> bytes:
    return chunk(b"tEXt", b"parameters\0" + text.encode("latin-1"))


def packed(text: bytes) -> bytes:
    return chunk(b"zTXt", b"parameters\0\0" + zlib.compress(text, 9))


def international(text: str, *, compressed: bool) -> bytes:
    data = zlib.compress(text.encode(), 9) if compressed else text.encode()
    return chunk(b"iTXt", b"parameters\0" + bytes([compressed, 0]) + b"en\0\0" + data)


def exif(text: str, length: int | None = None) -> bytes:
    """A folder with one entry, which leads to the one that has the comment."""
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    told = len(comment) if length is None else length
    first = struct.pack(">HHHIII", 1, 0x8769, 4, 1, 26, 0)
    second = struct.pack(">HHHIII", 1, 0x9286, 7, told, 44, 0)
    return b"MM\0*" + struct.pack(">I", 8) + first + second + comment


def segment(marker: int, data: bytes = b"") -> bytes:
    return struct.pack(">HH", marker, len(data) + 2) + data


def jpeg(*segments: bytes) -> bytes:
    return b"\xff\xd8" + b"".join(segments) + segment(0xFFDA) + b"\0" * 16


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(name + struct.pack("<I", len(data)) + data for name, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def in_exif(data: bytes) -> bytes:
    return segment(0xFFE1, b"Exif\0\0" + data)


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(png(chunk(b"IDAT", b"x" * 99), plain(TEXT)), id="PNG"),
        pytest.param(png(packed(TEXT.encode())), id="PNG, packed"),
        pytest.param(png(international(TEXT, compressed=False)), id="PNG, UTF-8"),
        pytest.param(png(international(TEXT, compressed=True)), id="PNG, UTF-8, packed"),
        pytest.param(jpeg(segment(0xFFE0, b"JFIF"), in_exif(exif(TEXT))), id="JPEG"),
        pytest.param(webp((b"VP8 ", b"ab"), (b"EXIF", exif(TEXT))), id="WebP"),
    ],
)
def test_settings_are_found(open_page: OpenPage, file: bytes) -> None:
    assert open_page().evaluate(READ, base64.b64encode(file).decode()) == SETTINGS


MANY = 25_000


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(png(plain(LONG)), id="long text"),
        pytest.param(png(packed(LONG.encode())), id="text that unpacks to a megabyte"),
        pytest.param(png(packed(bytes(200 << 20))), id="text that unpacks to 200 megabytes"),
        pytest.param(png(international(LONG, compressed=True)), id="long UTF-8, packed"),
        pytest.param(png(international(LONG, compressed=False)), id="long UTF-8"),
        pytest.param(png(*[chunk(b"tEXt", b"a\0")] * MANY, plain(TEXT)), id="many chunks"),
        pytest.param(
            png(chunk(b"tEXt", b"parameters\0a", 2**32 - 1)), id="a length beyond the end"
        ),
        pytest.param(png(chunk(b"zTXt", b"parameters\0\0nothing")), id="not packed"),
        pytest.param(jpeg(*[segment(0xFFE2)] * MANY, in_exif(exif(TEXT))), id="many segments"),
        pytest.param(jpeg(in_exif(exif(TEXT, 2**32 - 1))), id="a long comment told"),
        pytest.param(webp(*[(b"VP8 ", b"")] * MANY, (b"EXIF", exif(TEXT))), id="many WebP chunks"),
        pytest.param(webp((b"EXIF", exif(LONG))), id="a long comment"),
        pytest.param(bytes(1 << 20), id="zeros"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_what_is_not_drawn_so_is_left_alone(open_page: OpenPage, file: bytes) -> None:
    assert open_page().evaluate(READ, base64.b64encode(file).decode()) is None


def test_text_is_read_in_one_go(open_page: OpenPage) -> None:
    """A pattern that tries every place for each of its parts takes hours for this."""
    text = "Negative prompt: " * 1500 + "\nSteps: 1" + " " * 100_000 + "\nx"
    file = base64.b64encode(png(plain(text))).decode()
    assert open_page().evaluate(READ, file) is None


def test_numbers_that_are_none_are_left_out(open_page: OpenPage) -> None:
    file = png(plain("a\nSteps: 8x, Seed: 1e999, CFG scale: none, Size: x"))
    found = open_page().evaluate(READ, base64.b64encode(file).decode())
    assert found == {**dict.fromkeys(SETTINGS), "prompt": "a", "negative_prompt": ""}
