"""Labels of generated pictures, as GB 45438-2025 asks: a mark that people see, a record that
programs read.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from worker.types import Pixels

FONT = Path(__file__).with_name("fonts") / "mark.otf"
"""Has ASCII and the Chinese characters that such marks are made of."""

MIN_LETTER_SHARE = 0.05
"""Of the shorter side: the standard's least height of a letter."""

_MIN_LETTER_PX = 9  # below this, 生 is a blot
_BOX_ALPHA = 0.62  # white letters on it are legible on white, black and noise
_PROPERTY = "http://www.tc260.org.cn/ns/AIGC/1.0/"

Alpha = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Labels:
    """``mark`` is the text in the corner, ``producer`` the name or code of who offers the service;
    empty: none."""

    mark: str = ""
    producer: str = ""

    def marked(self, pixels: Pixels) -> Pixels:
        """``pixels`` with the mark in their lower right corner; the given ones stay as they are."""
        if not self.mark:
            return pixels
        height, width, _ = pixels.shape
        light, dark = _mark(self.mark, width, height)
        rows, columns = light.shape
        marked = pixels.copy()
        corner = marked[height - rows :, width - columns :]
        corner[:] = np.rint(corner * dark[..., None] + light[..., None])
        return marked

    def xmp(self, produce_id: str) -> bytes:
        """The XMP packet that says of picture ``produce_id`` who made it, or nothing."""
        if not self.producer or not produce_id:
            return b""
        record = {
            "Label": "1",  # is generated; 2 and 3 are for who can only suspect it
            "ContentProducer": self.producer,
            "ProduceID": produce_id,
            "ReservedCode1": "",
            "ContentPropagator": "",
            "PropagateID": "",
            "ReservedCode2": "",
        }
        text = escape(json.dumps(record, ensure_ascii=False))
        return (
            '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
            '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
            '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            f'<rdf:Description rdf:about="" xmlns:TC260="{_PROPERTY}">'
            f"<TC260:AIGC>{text}</TC260:AIGC>"
            "</rdf:Description></rdf:RDF></x:xmpmeta>"
            '<?xpacket end="r"?>'
        ).encode()


@lru_cache(maxsize=32)
def _mark(text: str, width: int, height: int) -> tuple[Alpha, Alpha]:
    """What to add to a corner of a picture, and what to multiply it with before."""
    font = _font(text, width, height)
    left, top, right, bottom = (round(side) for side in font.getbbox(text))
    space = max(2, (bottom - top) // 3)
    size = (min(width, right - left + 2 * space), min(height, bottom - top + 2 * space))
    drawn = Image.new("L", size)
    ImageDraw.Draw(drawn).text((space - left, space - top), text, fill=255, font=font)
    letters = np.asarray(drawn, np.float32) / 255
    return letters * 255, (1 - letters) * (1 - _BOX_ALPHA)


def _font(text: str, width: int, height: int) -> ImageFont.FreeTypeFont:
    """As large as its lowest letter needs; smaller where the text would leave the picture."""
    probe = ImageFont.truetype(FONT, 1000)
    lowest = min(_height(probe, letter) for letter in text if letter.isalnum())
    wanted = max(MIN_LETTER_SHARE * min(width, height) + 2, _MIN_LETTER_PX)
    fits = 0.9 * width / probe.getlength(text)
    return ImageFont.truetype(FONT, max(1, int(1000 * min(wanted / lowest, fits))))


def _height(font: ImageFont.FreeTypeFont, letter: str) -> float:
    _, top, _, bottom = font.getbbox(letter)
    return bottom - top
