"""Pictures as PNG, JPEG or WebP files, made in a bounded pool of threads.

A file says how it was drawn: PNG in a text chunk ``parameters``, JPEG and WebP in EXIF's
``UserComment``, in the form that common picture tools read. Labels stand in XMP.
"""

import base64
import json
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from isal import isal_zlib
from PIL import ExifTags, Image

from worker.errors import Overloaded
from worker.generation.labels import Labels
from worker.threads import ThreadPool
from worker.types import DrawSpec, Parameters, Pixels, fields_of

DEFAULT_QUALITY = {"jpeg": 92, "webp": 90}
MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
MAX_WAITING_PICTURES = 64
_UP = 2  # PNG: the filter "difference to the row above"
_COLOURS = {3: 2, 4: 6}  # PNG's numbers for RGB and RGBA
_MAX_EXIF_BYTES = 60_000  # one JPEG segment holds 64 KiB


@dataclass(frozen=True)
class Picture:
    """An encoded picture and, where asked for, its base64."""

    data: bytes = field(repr=False)
    b64: bytes = field(repr=False)


def parameters_text(spec: DrawSpec, model: str) -> str:
    """How a picture was drawn, for people and for picture tools."""
    lines, how = [spec.prompt], spec.parameters
    if how.negative_prompt:
        lines.append(f"Negative prompt: {how.negative_prompt}")
    lines.append(
        f"Steps: {how.steps}, CFG scale: {how.guidance_scale:g}, Seed: {spec.seed}, "
        f"Size: {how.size_text}, {_later(how)}{_source(spec)}Model: {model}"
    )
    return "\n".join(lines)


def _source(spec: DrawSpec) -> str:
    if spec.source is None:
        return ""
    names = {"image_sha256": "Image SHA-256", "mask_sha256": "Mask SHA-256"}
    return "".join(f"{names[name]}: {digest}, " for name, digest in spec.source.digests.items())


def _later(how: Parameters) -> str:
    """As the tools do that made this form: a text with what separates others is in quotes."""
    later = how.later
    if not later:
        return ""
    known = fields_of(type(how))
    said = {known[name].about.label: str(value) for name, value in later.items()}
    return "".join(f"{label}: {_quoted(text)}, " for label, text in said.items())


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"\n]', text) else text


def encode(
    pixels: Pixels, image_format: str, quality: int | None, parameters: str, xmp: bytes = b""
) -> bytes:
    """The file's bytes. ``quality`` 0 to 100 is for JPEG and WebP, ``xmp`` a packet of metadata.
    A PNG may have a fourth channel, alpha; what is empty is left out of it."""
    if image_format == "png":
        return _png(pixels, parameters, xmp)
    options: dict[str, Any] = {
        "quality": DEFAULT_QUALITY[image_format] if quality is None else quality,
        "exif": _exif(parameters),
        **({"xmp": xmp} if xmp else {}),
    }
    # In memory, but with a descriptor: only into such a file does Pillow write a JPEG without
    # holding the interpreter, for which the thread that draws would wait, and with it the GPU.
    with os.fdopen(os.memfd_create("picture"), "w+b") as file:
        Image.fromarray(pixels).save(file, image_format, **options)
        file.seek(0)
        return file.read()


def _png(pixels: Pixels, parameters: str, xmp: bytes) -> bytes:
    # Pillow takes twelve times as long for the same size: see docs/performance.md.
    height, width, channels = pixels.shape
    rows = pixels.reshape(height, width * channels)
    filtered = np.empty((height, 1 + width * channels), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    said = parameters.replace("\0", " ").encode()
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, _COLOURS[channels], 0, 0, 0)),
            _text(b"parameters", said) if said else b"",
            _text(b"XML:com.adobe.xmp", xmp) if xmp else b"",
            _chunk(b"IDAT", isal_zlib.compress(filtered, 1)),
            _chunk(b"IEND", b""),
        )
    )


def _text(keyword: bytes, utf8: bytes) -> bytes:
    return _chunk(b"iTXt", keyword + b"\0\0\0\0\0" + utf8)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def _exif(parameters: str) -> bytes:
    exif = Image.Exif()
    # Of what is too long the end is kept: seed and steps are there. The cut may halve a character.
    kept = parameters.encode("utf-16-be", "replace")[-_MAX_EXIF_BYTES:].decode(
        "utf-16-be", "ignore"
    )
    comment = b"UNICODE\0" + kept.encode("utf-16-be")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return exif.tobytes()


class Encoders:
    """A pool of ``threads`` encoder threads. Base64 is made there too, off the event loop.

    Every picture that leaves it bears ``labels``."""

    def __init__(self, threads: int, labels: Labels = Labels()) -> None:  # noqa: B008 (frozen)
        self._labels = labels
        self._crew = ThreadPool(threads, "encoder")

    @property
    def waiting(self) -> int:
        """Pictures being encoded or waiting for it."""
        return self._crew.waiting

    def require_room(self) -> None:
        """Raise ``Overloaded`` where drawing runs ahead of encoding: each picture waits in RAM."""
        if self.waiting >= MAX_WAITING_PICTURES:
            raise Overloaded("Too many pictures wait to be encoded.", retry_after_s=2.0)

    async def encode(
        self,
        pixels: Pixels,
        image_format: str,
        quality: int | None,
        parameters: str,
        *,
        produce_id: str,
        b64: bool = True,
    ) -> Picture:
        """``produce_id`` names the picture for ever; empty for a preview."""
        how = (image_format, quality, parameters, produce_id, b64)
        return await self._crew.do(lambda: self.encoded(pixels, *how))

    def begin(self, work: Callable[[], object]) -> None:
        """Do ``work``, which calls ``encoded`` and raises nothing, in an encoder's thread. From
        any thread, without waiting."""
        self._crew.begin(work)

    def encoded(
        self,
        pixels: Pixels,
        image_format: str,
        quality: int | None,
        parameters: str,
        produce_id: str,
        b64: bool,
    ) -> Picture:
        """What ``encode`` gives, in the caller's thread."""
        marked, xmp = self._labels.marked(pixels), self._labels.xmp(produce_id)
        data = encode(marked, image_format, quality, parameters, xmp)
        return Picture(data, base64.b64encode(data) if b64 else b"")

    def close(self) -> None:
        self._crew.close()
