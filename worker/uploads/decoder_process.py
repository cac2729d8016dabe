"""Decodes pictures of strangers in a process of its own, where a crafted file breaks nothing else.

Run by its path, for it imports nothing of ours. Each request on standard input is a line of JSON
(``bytes``, ``max_pixels``, ``alpha``) and so many bytes; each answer a line of JSON (``width``,
``height``, ``channels``) and the pixels row by row, or a line with ``why`` alone.
"""

import io
import json
import resource
import sys
import warnings
from typing import Any

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

MEMORY_BYTES = 1 << 30
CPU_S = 10
"""Of one picture."""
FORMATS = ("PNG", "JPEG", "WEBP")
_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
_SRGB = ImageCms.createProfile("sRGB")


class Unfit(Exception):
    """``why`` is a word for ``decoding``, ``more`` its numbers."""

    def __init__(self, why: str, **more: int) -> None:
        super().__init__(why)
        self.told = {"why": why, **more}


def decode(data: bytes, max_pixels: int, *, alpha: bool) -> Image.Image:
    """As it is seen: turned as its EXIF says, in sRGB, RGB or with ``alpha`` RGBA. Without, what
    shines through is white. ``Unfit`` before anything large is decoded."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
        width, height = opened.size
        if width * height > max_pixels:
            raise Unfit("pixels", width=width, height=height)
        if getattr(opened, "is_animated", False):
            raise Unfit("animated")
        opened.load()
        image = ImageOps.exif_transpose(opened)
        profile = opened.info.get("icc_profile")
    opaque = _in_srgb(image, profile)
    if not alpha and opaque.mode == "RGBA":
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return opaque.convert("RGBA" if alpha else "RGB")


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Grey and CMYK too; 16 bits become 8."""
    if image.mode in _16_BIT:
        return image.point(lambda value: value / 256, "L").convert("RGB")
    if image.mode in ("P", "PA", "LA", "1") or "transparency" in image.info:
        return image.convert("RGBA")
    if profile and image.mode in ("RGB", "RGBA", "CMYK", "L"):
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        try:
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            turned = ImageCms.profileToProfile(image, own, _SRGB, outputMode=mode)
        except (OSError, ImageCms.PyCMSError):
            turned = None  # a profile that is none: its pixels are taken as they are
        if turned is not None:
            return turned
    return image


def _answer(told: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        image = decode(data, told["max_pixels"], alpha=told["alpha"])
    except Unfit as unfit:
        return unfit.told, b""
    except UnidentifiedImageError:
        return {"why": "format"}, b""
    except Exception:  # decoders raise what they like at a file that lies
        return {"why": "broken"}, b""
    channels = len(image.getbands())
    return {"width": image.width, "height": image.height, "channels": channels}, image.tobytes()


def _bound() -> None:
    """By the kernel, whatever a decoder does."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _bound_next() -> None:
    """The limit counts all that the process has used since it began."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime) + 1 + CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))


def main() -> None:
    """Until standard input ends, as it does with the worker."""
    warnings.simplefilter("ignore")  # ours is the bound of pixels
    Image.MAX_IMAGE_PIXELS = None
    _bound()
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while line := source.readline():
        told = json.loads(line)
        _bound_next()
        answer, pixels = _answer(told, source.read(told["bytes"]))
        sink.write(json.dumps(answer).encode() + b"\n" + pixels)
        sink.flush()


if __name__ == "__main__":
    main()
