"""Pictures that look like pictures: a landscape made from the prompt and the seed alone."""

import colorsys
import hashlib
import io

import numpy as np
from PIL import Image, ImageFilter

Colour = tuple[float, float, float]


def landscape(prompt: str, seed: int, width: int, height: int) -> Image.Image:
    """Sky, sun and five ranges of hills; the same for the same arguments."""
    rng = np.random.default_rng(_entropy(prompt, seed))
    hue = rng.random()
    picture = _sky(rng, hue, width, height)
    for layer in range(5):
        _add_hills(picture, rng, hue, layer / 4)
    grain = rng.normal(0, 2.5, (height, width, 1))
    return Image.fromarray(np.clip(picture + grain, 0, 255).astype(np.uint8))


def preview(picture: Image.Image, part: int, parts: int) -> Image.Image:
    """How ``picture`` looks when ``part`` of ``parts`` previews are out: blurred, noisy."""
    left = 1 - part / (parts + 1)
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(picture.width * left / 24)), float)
    noise = np.random.default_rng(part).normal(0, 45 * left, soft.shape)
    return Image.fromarray(np.clip(soft + noise, 0, 255).astype(np.uint8))


def encoded(picture: Image.Image, output_format: str = "png") -> bytes:
    file = io.BytesIO()
    picture.save(file, output_format, **({"compress_level": 1} if output_format == "png" else {}))
    return file.getvalue()


def _entropy(prompt: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{prompt}\n{seed}".encode()).digest()[:8])


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _sky(rng: np.random.Generator, hue: float, width: int, height: int) -> np.ndarray:
    down = np.linspace(0, 1, height)[:, None, None]
    top, low = _colour(hue, 0.62, 0.5), _colour(hue + 0.12, 0.35, 1)
    picture = np.repeat(top * (1 - down) + low * down, width, axis=1)
    y, x = np.mgrid[:height, :width]
    far = np.hypot(x - width * rng.uniform(0.2, 0.8), y - height * rng.uniform(0.2, 0.5))
    radius = min(width, height) * rng.uniform(0.05, 0.11)
    glow = np.exp(-far / (radius * 3))[..., None]
    disc = np.clip((radius - far) + 0.5, 0, 1)[..., None]
    picture += (_colour(hue + 0.1, 0.1, 1) - picture) * np.maximum(disc, glow * 0.75)
    return np.asarray(picture)


def _add_hills(picture: np.ndarray, rng: np.random.Generator, hue: float, near: float) -> None:
    height, width = picture.shape[:2]
    x = np.linspace(0, 1, width)
    line = 0.5 + 0.4 * near + np.zeros(width)
    for octave in range(1, 8):
        swing = 0.1 * (1.15 - near) / octave**1.25
        line += swing * np.sin(2 * np.pi * (octave * 1.7 * x + rng.random()))
    depth = np.arange(height)[:, None] / height - line[None]
    inside = np.clip(depth * height, 0, 1)[..., None]
    mist = np.clip(1 - depth * 4, 0, 1)[..., None] * 0.22
    colour = _colour(hue + 0.04 - 0.1 * near, 0.35 + 0.35 * near, 0.72 - 0.56 * near)
    picture += (colour + (picture - colour) * mist - picture) * inside
