"""Files that somebody sent become the picture that a drawing goes on from, as large as that."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from worker.errors import InvalidRequest, Overloaded
from worker.types import Mask, Pixels, SourceImage
from worker.uploads.decoding import Decoder

MAX_PIXELS = 4096 * 4096
"""Of a picture that is sent; drawings are smaller."""

READ_AT_ONCE = 2
"""Bodies of many MB; each largest picture takes some 200 MiB while it is placed."""
MAX_WAITING = 16
"""Requests that wait to be read. Each is read in a fraction of a second."""
TURN_S = 10.0
"""How long one of them waits."""

Size = tuple[int, int]
Fit = Literal["cover", "extend"]


@dataclass(frozen=True)
class Sent:
    """A file, and the SHA-256 in hex of what its sender has: of an upload that is kept without
    what was beside its pixels, another one's. ``id``: where it was named by it."""

    data: bytes
    sha256: str
    id: str = ""

    @classmethod
    def of(cls, data: bytes) -> "Sent":
        return cls(data, hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Placing:
    """How a picture becomes as large as its drawing, whose width and height ``size`` tells from
    the picture's. ``cover``: it is scaled until it covers the drawing, and cut evenly. ``extend``:
    it stays as large as it is, with its corner at ``position`` (None: in the middle), and what is
    beside it is drawn."""

    size: Callable[[Size], Size]
    fit: Fit = "cover"
    position: tuple[int, int] | None = None

    @classmethod
    def of_row(cls, fit: str | None, position: str | None, size: Size) -> "Placing":
        """As a job's row has it, whose pictures have ``size``."""
        x, _, y = (position or "").partition(",")
        fits: Fit = "extend" if fit == "extend" else "cover"
        return cls(lambda _: size, fits, (int(x), int(y)) if position else None)


class Sources:
    """Decodes in a process of its own (``Decoder``)."""

    def __init__(self) -> None:
        self._decoder = Decoder()
        self._turns = asyncio.Semaphore(READ_AT_ONCE)
        self._waiting = 0
        self._read_s = 0.2  # of late, on average

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Held by whoever reads a request with pictures until they are prepared. Raises
        ``Overloaded`` where too many wait already, or its turn does not come in ``TURN_S``."""
        if self._waiting >= MAX_WAITING:
            raise self._crowded()
        self._waiting += 1
        try:
            async with asyncio.timeout(TURN_S):
                await self._turns.acquire()
        except TimeoutError:
            raise self._crowded() from None
        finally:
            self._waiting -= 1
        began = time.monotonic()
        try:
            yield
        finally:
            self._turns.release()
            self._read_s += (time.monotonic() - began - self._read_s) / 8

    def _crowded(self) -> Overloaded:
        """Come again when those who wait now will have been read."""
        wait_s = self._read_s * (self._waiting + READ_AT_ONCE) / READ_AT_ONCE
        return Overloaded(
            "Many requests with pictures are being read: try again.", retry_after_s=max(1.0, wait_s)
        )

    async def prepare(
        self, image: Sent, mask: Sent | None, placing: Placing, *, masked: bool = True
    ) -> SourceImage:
        """``image`` as ``placing`` says. A ``mask`` is as large as it, and transparent or white
        where the picture is drawn anew; without one, what is transparent in the image is, unless
        ``masked`` is False. Raises ``InvalidRequest``, ``Unavailable``."""
        seen = await self._decoded(image.data, "image")
        hidden = None if mask is None else await self._decoded(mask.data, "mask")
        placed = await asyncio.to_thread(_placed, seen, hidden, placing, masked)
        x, y = placing.position or (-1, -1)
        return SourceImage(
            image.sha256,
            *placed,
            mask_sha256="" if mask is None else mask.sha256,
            placement="" if placing.fit == "cover" else f"{placing.fit} {x},{y}",
            drawn_from=_drawn_from(image, mask, placing) if image.id else {},
        )

    async def pixels(self, data: bytes, field: str) -> Pixels:
        """(height, width, 3), or 4 where something of it is transparent, for whoever keeps them.
        Raises as ``prepare``."""
        seen = await self._decoded(data, field)
        opaque = await asyncio.to_thread(lambda: bool(seen[..., 3].min() == 255))
        return seen[..., :3] if opaque else seen

    async def close(self) -> None:
        await self._decoder.close()

    async def _decoded(self, data: bytes, field: str) -> npt.NDArray[np.uint8]:
        """height × width × 4."""
        return await self._decoder.decode(data, field=field, max_pixels=MAX_PIXELS, alpha=True)


def _drawn_from(image: Sent, mask: Sent | None, placing: Placing) -> dict[str, str]:
    found = {"image": image.id, "fit": placing.fit}
    if mask is not None and mask.id:
        found["mask"] = mask.id
    if placing.position is not None:
        found["position"] = ",".join(map(str, placing.position))
    return found


def _placed(
    seen: npt.NDArray[np.uint8],
    hidden: npt.NDArray[np.uint8] | None,
    placing: Placing,
    masked: bool,
) -> tuple[Pixels, Mask | None]:
    picture, mask = Image.fromarray(seen), None
    if hidden is not None:
        mask = _mask(hidden, picture.size)
    elif masked and _transparent(picture):
        mask = ImageOps.invert(picture.getchannel("A"))
    if _transparent(picture):
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    opaque = picture.convert("RGB")
    size = placing.size(picture.size)
    if placing.fit == "extend":
        return _extended(opaque, mask, size, placing.position)
    pixels = np.asarray(_covering(opaque, size, Image.Resampling.LANCZOS))
    if mask is None:
        return pixels, None
    return pixels, np.asarray(_covering(mask, size, Image.Resampling.BILINEAR))


def check_mask(mask: Size, image: Size) -> None:
    """Raise ``InvalidRequest`` unless both are equally large."""
    if mask != image:
        raise _wrong("mask", f"it is {_text(mask)}, the image {_text(image)}: make both alike")


def corner(image: Size, size: Size, position: tuple[int, int] | None) -> tuple[int, int]:
    """Where the upper left corner of a picture is that is extended to ``size``; raises
    ``InvalidRequest`` where it does not fit."""
    (width, height), (wide, high) = image, size
    if wide < width or high < height:
        raise _wrong("size", f"{_text(size)} is smaller than the image, {_text(image)}")
    x, y = position or ((wide - width) // 2, (high - height) // 2)
    if x + width > wide or y + height > high:
        raise _wrong("position", f"at {x},{y} the image, {_text(image)}, leaves {_text(size)}")
    return x, y


def _mask(hidden: npt.NDArray[np.uint8], size: Size) -> Image.Image:
    mask = Image.fromarray(hidden)
    check_mask(mask.size, size)
    alpha = ImageOps.invert(mask.getchannel("A"))
    found = alpha if _transparent(mask) else mask.convert("L")
    if np.asarray(found).max() < 128:
        raise _wrong("mask", "nothing of it is transparent or white, so nothing would be drawn")
    return found


def _transparent(image: Image.Image) -> bool:
    return bool(np.asarray(image.getchannel("A")).min() < 255)


def _covering(image: Image.Image, size: Size, how: Image.Resampling) -> Image.Image:
    return image if image.size == size else ImageOps.fit(image, size, how)


def _extended(
    image: Image.Image, mask: Image.Image | None, size: Size, position: tuple[int, int] | None
) -> tuple[Pixels, Mask]:
    (width, height), (wide, high) = image.size, size
    x, y = corner(image.size, size, position)
    around: Any = ((y, high - height - y), (x, wide - width - x))
    # The border goes on, so that the encoder sees no edge where the picture ends.
    pixels = np.pad(np.asarray(image), (*around, (0, 0)), "edge")
    inner = np.zeros((height, width), np.uint8) if mask is None else np.asarray(mask)
    return pixels, np.pad(inner, around, constant_values=255)


def _text(size: Size) -> str:
    return f"{size[0]}×{size[1]}"


def _wrong(field: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {why}.", param=field)
