"""A picture that is drawn in tiles: each is a row of the engine, as large as the model likes, so
the peak of memory is a tile's, and tiles share steps with whatever else is drawn.

Tiles overlap. In the middle of an overlap one fades into the next; what is nearer to a tile's edge
is not used, for there it knows least of what is beside it. Each tile is drawn without a look at the
others, and so comes out a little lighter or redder than they: it gets the tones of what it was
drawn from back, and keeps its own detail.
"""

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from worker.engine.request import NO_PIXELS, Drawn, Stepped
from worker.types import DrawSpec, Pixels, SourceImage

_FULL = 256
"""The weights of all tiles at a pixel, in one direction: so they add up exactly."""
_MOST_SEEDS = 2**32

_HOW = Image.Resampling.BICUBIC

Size = tuple[int, int]
Tones = npt.NDArray[np.float32]
"""Mean colours of squares: rows × columns × 3."""


@dataclass(frozen=True)
class Axis:
    """One direction of a picture: tiles of ``side`` begin at ``starts``, and each fades into the
    next over ``fade`` pixels in the middle of their overlap."""

    length: int
    side: int
    starts: tuple[int, ...]
    fade: int

    @classmethod
    def of(cls, length: int, most: int, multiple: int) -> "Axis":
        """``length`` in tiles of at most ``most``; all are multiples of ``multiple``."""
        side = min(length, most)
        fade = max(multiple, side // 8 // multiple * multiple)
        count = 1 if length <= side else -(-(length - fade) // (side - fade))
        gaps = max(1, count - 1)
        spread = [(length - side) * k // gaps // multiple * multiple for k in range(count)]
        return cls(length, side, (*spread[:-1], length - side), fade)

    def weights(self, tile: int) -> npt.NDArray[np.uint32]:
        """Of the pixels of ``tile``: 0 … 256."""
        found = np.full(self.side, _FULL, np.uint32)
        start = self.starts[tile]
        if tile > 0:
            found = np.minimum(found, self._rise(tile - 1, start))
        if tile < len(self.starts) - 1:
            found = np.minimum(found, _FULL - self._rise(tile, start))
        return found

    def _rise(self, tile: int, start: int) -> npt.NDArray[np.uint32]:
        """How much of the tile behind ``tile`` there is, from ``start`` on."""
        middle = (self.starts[tile + 1] + self.starts[tile] + self.side) // 2
        at = np.arange(start, start + self.side) - (middle - self.fade // 2)
        return np.clip((2 * at + 1) * _FULL // (2 * self.fade), 0, _FULL).astype(np.uint32)


@dataclass(frozen=True)
class Tiles:
    """What a picture is cut into, with what each tile goes on from. ``most``: the largest tile."""

    across: Axis
    down: Axis
    sources: tuple[SourceImage, ...]
    tones: tuple[Tones, ...]

    @classmethod
    def of(cls, source: SourceImage, most: Size, multiple: int) -> "Tiles":
        """Of the pixels of ``source``, which has them no longer."""
        pixels = source.pixels
        assert pixels is not None, "they are cut here"
        height, width, _ = pixels.shape
        across, down = Axis.of(width, most[0], multiple), Axis.of(height, most[1], multiple)
        cut = [
            pixels[y : y + down.side, x : x + across.side].copy()
            for y, x in itertools.product(down.starts, across.starts)
        ]
        source.pixels = None
        sources = tuple(replace(source, pixels=each) for each in cut)
        return cls(across, down, sources, tuple(_tones(each, multiple) for each in cut))


class Tiling:
    """The tiles of ``whole`` while they are drawn, by the threads that encode. Seeds as those of
    the pictures of a request."""

    def __init__(self, whole: DrawSpec, tiles: Tiles) -> None:
        self.whole = whole
        self._tiles = tiles
        how = replace(whole.parameters, width=tiles.across.side, height=tiles.down.side)
        self.specs = tuple(
            DrawSpec(whole.prompt, (whole.seed + k) % _MOST_SEEDS, how, source)
            for k, source in enumerate(tiles.sources)
        )
        self._lock = threading.Lock()
        self._sum: npt.NDArray[np.uint32] | None = None
        self._drawn: list[Drawn] = []
        self._steps: dict[int, int] = {}

    def take(self, drawn: Drawn) -> Drawn:
        """A tile is drawn. With the last one the picture, as number 0; until then, what counts one
        more tile, without pixels."""
        with self._lock:
            self._add(drawn.image_index, drawn.pixels)
            self._drawn.append(replace(drawn, pixels=NO_PIXELS))
            count = len(self._drawn)
            if count < len(self.specs):
                return replace(self._drawn[-1], image_index=count)
            return self._whole(self._drawn)

    def followed(self, step: Stepped) -> Stepped:
        """``step`` of a tile as one of the picture's: all tiles' count."""
        self._steps[step.image_index] = step.step
        done, of = sum(self._steps.values()), step.steps * len(self.specs)
        return Stepped(0, done, of, step.remaining_s)

    def _add(self, index: int, pixels: Pixels) -> None:
        across, down = self._tiles.across, self._tiles.down
        if self._sum is None:
            self._sum = np.zeros((down.length, across.length, 3), np.uint32)
        row, column = divmod(index, len(across.starts))
        y, x = down.starts[row], across.starts[column]
        weights = np.outer(down.weights(row), across.weights(column))
        at = self._sum[y : y + down.side, x : x + across.side]
        wanted = self._tiles.tones[index]
        missing = wanted - _tones(pixels, down.side // wanted.shape[0])
        for channel in range(3):  # one at a time: a third of the memory
            spread = Image.fromarray(missing[..., channel]).resize((across.side, down.side), _HOW)
            toned = pixels[..., channel] + np.rint(np.asarray(spread))
            at[..., channel] += weights * toned.clip(0, 255).astype(np.uint32)

    def _whole(self, drawn: Sequence[Drawn]) -> Drawn:
        assert self._sum is not None, "a tile is there"
        pixels = np.empty(self._sum.shape, np.uint8)
        for row, summed in enumerate(self._sum):
            pixels[row] = (summed + _FULL * _FULL // 2) // (_FULL * _FULL)
        self._sum = None
        queue_ms = min(one.queue_ms for one in drawn)
        times: dict[str, Any] = {
            "queue_ms": queue_ms,
            "inference_ms": max(one.queue_ms + one.inference_ms for one in drawn) - queue_ms,
            "batch_size": max(one.batch_size for one in drawn),
            "device_s": sum(one.device_s for one in drawn),
        }
        return Drawn(0, self.whole, pixels, **times)


def _tones(pixels: Pixels, side: int) -> Tones:
    """Of squares with ``side`` pixels to a side."""
    height, width, _ = pixels.shape
    squares = pixels.reshape(height // side, side, width // side, side, 3)
    means: Tones = squares.mean(axis=(1, 3), dtype=np.float32)
    return means
