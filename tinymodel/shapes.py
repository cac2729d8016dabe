"""Scenes of coloured shapes and how to draw them.

A `Scene` says what a picture shows, as far as anybody asked; `plan` fills in the rest by chance and
`paint` draws. `paint` takes numpy or torch as its array module, so that training data (thousands at
once, on a GPU) and the pictures that the judge is tested on come from the same few lines.
"""

import math
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
from PIL import Image

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 38, 38),
    "orange": (245, 135, 25),
    "yellow": (250, 215, 45),
    "green": (35, 155, 70),
    "cyan": (60, 205, 215),
    "blue": (40, 85, 215),
    "purple": (130, 50, 175),
    "pink": (248, 150, 195),
    "brown": (120, 72, 38),
    "black": (22, 22, 22),
    "white": (250, 250, 250),
    "grey": (140, 140, 140),
}
KINDS = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "moon")
SIZES = ("small", "large")
# Column and row of each position: 0 left or top, 1 middle, 2 right or bottom.
POSITIONS: dict[str, tuple[int, int]] = {
    "centre": (1, 1),
    "left": (0, 1),
    "right": (2, 1),
    "top": (1, 0),
    "bottom": (1, 2),
    "top left": (0, 0),
    "top right": (2, 0),
    "bottom left": (0, 2),
    "bottom right": (2, 2),
}
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
MAX_SHAPES = 2

# Radius over the shorter side: (a shape alone, one of two).
_RADII: dict[str | None, tuple[tuple[float, float], tuple[float, float]]] = {
    "small": ((0.11, 0.14), (0.10, 0.12)),
    None: ((0.17, 0.24), (0.14, 0.17)),
    "large": ((0.29, 0.34), (0.19, 0.22)),
}
_GRID = (0.24, 0.5, 0.76)
_MARGIN = 1.08  # of the radius, kept free towards the picture's edge
_MAX_TILT = 0.03  # radians
_CELL_PX = 8  # middles lie on this grid, the autoencoder's: a small model draws sharper outlines so
_MAX_TINT = 6  # of 255, either way


@dataclass(frozen=True)
class Shape:
    """One shape; None means that nobody asked."""

    kind: str
    colour: str | None = None
    size: str | None = None
    position: str | None = None


@dataclass(frozen=True)
class Scene:
    """A background and up to two shapes that do not overlap; None means that nobody asked."""

    background: str | None
    shapes: tuple[Shape, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Everything `paint` needs, for a batch of B pictures and S shapes each.

    background (B, 3) and colour (B, S, 3) in 0…1; kind (B, S) indexes KINDS, -1 for none;
    x, y (B, S) over width and height; radius (B, S) over the shorter side; tilt (B, S) in radians.
    """

    background: Any
    colour: Any
    kind: Any
    x: Any
    y: Any
    radius: Any
    tilt: Any


def places(scene: Scene) -> tuple[str, ...]:
    """Where each shape goes: as asked, else the centre, or left and right for two."""
    defaults = ("centre",) if len(scene.shapes) == 1 else ("left", "right")
    return tuple(s.position or d for s, d in zip(scene.shapes, defaults, strict=False))


def settle(scene: Scene, rng: Random) -> Scene:
    """The scene with every colour decided: white behind what it does not hide, shapes by chance."""
    asked = {s.colour for s in scene.shapes}
    background = scene.background
    if background is None:
        background = "white" if "white" not in asked else rng.choice(_others(*asked))
    shapes = [
        s if s.colour else replace(s, colour=rng.choice(_others(background, *asked)))
        for s in scene.shapes
    ]
    return Scene(background, tuple(shapes))


def plan(scenes: list[Scene], width: int, height: int, rng: Random) -> Plan:
    """Decides by chance what the scenes leave open: a numpy plan for pictures of one size."""
    count = len(scenes)
    out = Plan(
        background=np.zeros((count, 3), np.float32),
        colour=np.zeros((count, MAX_SHAPES, 3), np.float32),
        kind=np.full((count, MAX_SHAPES), -1, np.int64),
        x=np.zeros((count, MAX_SHAPES), np.float32),
        y=np.zeros((count, MAX_SHAPES), np.float32),
        radius=np.ones((count, MAX_SHAPES), np.float32),
        tilt=np.zeros((count, MAX_SHAPES), np.float32),
    )
    for row, scene in enumerate(scenes):
        _plan_one(out, row, settle(scene, rng), width, height, rng)
    return out


def paint(xp: Any, plan: Plan, width: int, height: int) -> Any:
    """Draws a plan with array module `xp` (numpy or torch): floats 0…1 of (B, height, width, 3)."""
    shorter = min(width, height)
    options = {"dtype": plan.x.dtype, "device": plan.x.device}
    columns = (xp.arange(width, **options)[None, None, :] + 0.5) / shorter
    rows = (xp.arange(height, **options)[None, :, None] + 0.5) / shorter
    blank = xp.zeros((len(plan.x), height, width, 1), **options)
    canvas = blank + plan.background[:, None, None, :]
    for slot in range(plan.kind.shape[1]):
        for number, kind in enumerate(KINDS):
            chosen = plan.kind[:, slot] == number
            if not bool(chosen.any()):
                continue
            values = (plan.x, plan.y, plan.radius, plan.tilt)
            x, y, radius, tilt = (value[chosen, slot][:, None, None] for value in values)
            dx = (columns - x * (width / shorter)) / radius
            dy = (rows - y * (height / shorter)) / radius
            cos, sin = xp.cos(tilt), xp.sin(tilt)
            away = distance(xp, kind, dx * cos + dy * sin, dy * cos - dx * sin)
            alpha = xp.clip(0.5 - away * radius * shorter, 0, 1)[..., None]
            colour = plan.colour[chosen, slot][:, None, None, :]
            canvas[chosen] = canvas[chosen] * (1 - alpha) + colour * alpha
    return canvas


def draw(scene: Scene, width: int, height: int, seed: int = 0) -> Image.Image:
    """One picture of a scene, the same for the same seed."""
    pixels = paint(np, plan([scene], width, height, Random(seed)), width, height)[0]
    return Image.fromarray((pixels * 255).round().astype(np.uint8))


def distance(xp: Any, kind: str, x: Any, y: Any) -> Any:
    """Signed distance, negative inside, to a shape of radius about one (y points down)."""
    return _DISTANCES[kind](xp, x, y)


def _others(*taken: str | None) -> list[str]:
    return [name for name in PALETTE if name not in taken]


def _plan_one(out: Plan, row: int, scene: Scene, width: int, height: int, rng: Random) -> None:
    out.background[row] = _tinted(scene.background, rng)
    shorter, crowd = min(width, height), len(scene.shapes) - 1
    for slot, (shape, place) in enumerate(zip(scene.shapes, places(scene), strict=True)):
        radius = rng.uniform(*_RADII[shape.size][crowd])
        slack = 0.02 if shape.position or crowd else 0.05
        column, line = POSITIONS[place]
        out.kind[row, slot] = KINDS.index(shape.kind)
        out.colour[row, slot] = _tinted(shape.colour, rng)
        out.radius[row, slot] = radius
        out.tilt[row, slot] = rng.uniform(-_MAX_TILT, _MAX_TILT)
        margin = _MARGIN * radius * shorter
        out.x[row, slot] = _fit(_GRID[column] + rng.uniform(-slack, slack), width, margin)
        out.y[row, slot] = _fit(_GRID[line] + rng.uniform(-slack, slack), height, margin)


def _fit(share: float, side: int, margin: float) -> float:
    """The cell border nearest to a share of a side, in shares, at least `margin` pixels inside."""
    first, last = math.ceil(margin / _CELL_PX), int((side - margin) / _CELL_PX)
    cell = min(max(round(share * side / _CELL_PX), first), last)
    return cell * _CELL_PX / side


def _tinted(colour: str | None, rng: Random) -> np.ndarray[Any, Any]:
    assert colour is not None
    shift = [rng.uniform(-_MAX_TINT, _MAX_TINT) for _ in range(3)]
    return np.clip((np.array(PALETTE[colour]) + shift) / 255, 0, 1)


def _circle(xp: Any, x: Any, y: Any) -> Any:
    return xp.hypot(x, y) - 0.95


def _square(xp: Any, x: Any, y: Any) -> Any:
    return xp.maximum(xp.abs(x), xp.abs(y)) - 0.82


def _triangle(xp: Any, x: Any, y: Any) -> Any:
    y = y - 0.22
    return xp.maximum(y, 0.866 * xp.abs(x) - 0.5 * y) - 0.55


def _star(xp: Any, x: Any, y: Any) -> Any:
    """All points folded onto one, whose side runs from its tip at (1.05, 0) to an inner corner."""
    sector = 2 * np.pi / 5
    angle = xp.arctan2(x, -y)
    angle = xp.abs(angle - xp.round(angle / sector) * sector)
    length = xp.hypot(x, y)
    along, across = 0.45 * np.cos(sector / 2) - 1.05, 0.45 * np.sin(sector / 2)
    norm = np.hypot(along, across)
    return ((length * xp.cos(angle) - 1.05) * across - length * xp.sin(angle) * along) / norm


def _heart(xp: Any, x: Any, y: Any) -> Any:
    """A square on its tip with a half disc on each upper side."""
    side, y = 0.56, y + 0.08
    middle = side / np.sqrt(2)
    tip = (xp.abs(x) + xp.abs(y)) / np.sqrt(2) - side
    return xp.minimum(tip, xp.hypot(xp.abs(x) - middle, y + middle) - side)


def _ring(xp: Any, x: Any, y: Any) -> Any:
    return xp.abs(xp.hypot(x, y) - 0.73) - 0.23


def _cross(xp: Any, x: Any, y: Any) -> Any:
    longer, shorter = xp.maximum(xp.abs(x), xp.abs(y)), xp.minimum(xp.abs(x), xp.abs(y))
    return xp.maximum(longer - 0.95, shorter - 0.3)


def _moon(xp: Any, x: Any, y: Any) -> Any:
    x = x - 0.22
    return xp.maximum(xp.hypot(x, y) - 0.95, 0.8 - xp.hypot(x - 0.45, y))


_DISTANCES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "ring": _ring,
    "cross": _cross,
    "moon": _moon,
}
