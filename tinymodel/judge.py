"""Judges whether a picture shows the scene that was asked for; numpy only.

What differs from the background falls into connected blobs. A blob's colour is the palette colour
that most of its pixels are nearest to; its kind, the one whose outline fits it best at any tilt.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import Any

import numpy as np
from PIL import Image

from tinymodel.shapes import KINDS, PALETTE, POSITIONS, Scene, Shape, distance, places

Array = np.ndarray[Any, Any]

_NAMES = tuple(PALETTE)
_COLOURS = np.array(list(PALETTE.values()), np.float32)
_MIN_CONTRAST = 40.0  # of 255, Euclidean: about half of what the nearest palette colours differ by
_MIN_AREA = 0.003  # of the shorter side squared; a small moon has 0.012
_MIN_OVERLAP = 0.7  # intersection over union with the outline
_GRID_PX = 32
_TILTS = np.linspace(-0.15, 0.15, 5)
# Between small and large radius over the shorter side: alone, one of two.
_SIZE_BORDER = (0.2, 0.153)
# Where the middle of the first, second and third column (or row) may lie.
_CELLS = ((0.0, 0.43), (0.36, 0.64), (0.57, 1.0))


@dataclass(frozen=True)
class Verdict:
    """What of a scene is right; what nobody asked for is right in any way."""

    background_ok: bool
    colour_ok: bool
    shape_ok: bool
    position_ok: bool
    size_ok: bool

    @property
    def ok(self) -> bool:
        """Whether all is right."""
        return all(vars(self).values())


@dataclass(frozen=True)
class Blob:
    """Something seen: middle over width and height, radius over the shorter side."""

    colour: str
    kind: str | None
    x: float
    y: float
    radius: float


_NOTHING = Blob("", None, -1.0, -1.0, 0.0)


def judge(image: Image.Image, scene: Scene) -> Verdict:
    """Compares a picture with a scene. A blob too many or too few makes the shapes wrong."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    background, blobs = look(pixels)
    marks = _best_match(blobs, scene)
    return Verdict(scene.background in (None, background), *marks)


def colour_at_centre(image: Image.Image) -> str:
    """The palette colour nearest to the picture's middle."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    return _common_colour(pixels[pixels.shape[0] // 2, pixels.shape[1] // 2][None])


def look(pixels: Array) -> tuple[str, list[Blob]]:
    """The background's colour and the blobs before it, largest first.

    `pixels` is (height, width, 3) in 0…255.
    """
    height, width = pixels.shape[:2]
    edge = max(2, min(height, width) // 25)
    frame = np.ones((height, width), bool)
    frame[edge:-edge, edge:-edge] = False
    background = _common_colour(pixels[frame])
    shade = np.median(pixels[frame][_nearest(pixels[frame]) == _NAMES.index(background)], axis=0)
    differs = np.linalg.norm(pixels - shade, axis=-1) > _MIN_CONTRAST
    smallest = _MIN_AREA * min(height, width) ** 2
    masks = [mask for mask in _connected(differs) if mask.sum() >= smallest]
    masks.sort(key=np.sum, reverse=True)
    return background, [_blob(pixels, mask) for mask in masks]


def _best_match(blobs: list[Blob], scene: Scene) -> tuple[bool, bool, bool, bool]:
    """Marks for colour, shape, position and size of the largest blobs under the best pairing."""
    wanted = len(scene.shapes)
    compared = (blobs + [_NOTHING] * wanted)[:wanted]
    colour, shape, position, size = max(_pairings(compared, scene), key=sum)
    return colour, shape and len(blobs) == wanted, position, size


def _pairings(blobs: list[Blob], scene: Scene) -> Iterator[tuple[bool, bool, bool, bool]]:
    crowd = len(scene.shapes) - 1
    for order in permutations(blobs, len(scene.shapes)):
        pairs = list(zip(order, scene.shapes, places(scene), strict=False))
        yield (
            all(shape.colour in (None, blob.colour) for blob, shape, _ in pairs),
            all(shape.kind == blob.kind for blob, shape, _ in pairs),
            all(shape.position is None or _is_at(blob, place) for blob, shape, place in pairs),
            all(_is_sized(blob, shape, crowd) for blob, shape, _ in pairs),
        )


def _is_at(blob: Blob, place: str) -> bool:
    column, line = (_CELLS[cell] for cell in POSITIONS[place])
    return column[0] <= blob.x <= column[1] and line[0] <= blob.y <= line[1]


def _is_sized(blob: Blob, shape: Shape, crowd: int) -> bool:
    if shape.size is None:
        return True
    return (blob.radius > _SIZE_BORDER[crowd]) == (shape.size == "large")


def _blob(pixels: Array, mask: Array) -> Blob:
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    kind, reach = _kind(mask[top:bottom, left:right])
    return Blob(
        colour=_common_colour(pixels[mask]),
        kind=kind,
        x=float(left + right) / 2 / width,
        y=float(top + bottom) / 2 / height,
        radius=float(max(bottom - top, right - left)) / 2 / reach / min(height, width),
    )


def _kind(crop: Array) -> tuple[str | None, float]:
    """The kind that overlaps a mask best, if well enough, and how far it reaches at radius one."""
    seen = _scaled(crop)
    scores = [
        (float((seen & outline).sum() / (seen | outline).sum()), kind, reach)
        for kind, outline, reach in _outlines()
    ]
    overlap, kind, reach = max(scores)
    return (kind if overlap >= _MIN_OVERLAP else None), reach


@lru_cache
def _outlines() -> list[tuple[str, Array, float]]:
    half = 64
    y, x = np.mgrid[-half : half + 1, -half : half + 1] / half * 1.3
    found = []
    for kind in KINDS:
        for tilt in _TILTS:
            cos, sin = np.cos(tilt), np.sin(tilt)
            mask = distance(np, kind, x * cos + y * sin, y * cos - x * sin) < 0
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            found.append((kind, _scaled(crop), max(crop.shape) / 2 / half * 1.3))
    return found


def _scaled(mask: Array) -> Array:
    rows, columns = (
        ((np.arange(_GRID_PX) + 0.5) * length / _GRID_PX).astype(int) for length in mask.shape
    )
    return mask[np.ix_(rows, columns)]


def _nearest(pixels: Array) -> Array:
    return np.asarray(((pixels[:, None] - _COLOURS) ** 2).sum(-1).argmin(1))


def _common_colour(pixels: Array) -> str:
    return _NAMES[int(np.bincount(_nearest(pixels), minlength=len(_NAMES)).argmax())]


def _connected(mask: Array) -> Iterator[Array]:
    """The connected parts (by sides) of a mask: numbers spread within it until none changes."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    before = None
    while before is None or (labels != before).any():
        before = labels.copy()
        for view in (labels, labels[::-1], labels.T, labels.T[::-1]):
            for line in range(1, len(view)):
                spread = np.maximum(view[line], view[line - 1])
                np.copyto(view[line], spread, where=view[line] > 0)
    for label in np.unique(labels[labels > 0]):
        yield labels == label
