"""What is wrong with an answer. Pure; every function returns a sentence, or "" where all is right.

On the synthetic model the picture itself spells prompt, seed and steps; on the tiny model the
shape in the middle must have the colour that was asked for. On every model size and seed are
checked, and that the same request gives the same picture whenever and wherever it is drawn.
"""

import base64
import binascii
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from tinymodel.captions import scene_of
from tinymodel.judge import colour_at_centre
from worker.models.synthetic import text_of

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
MAX_SEED = 2**32
TINY = "zimage-tiny"
"""The id of the model that is shipped."""
TINY_SIDE, TINY_STEPS = 256, 8
"""From here on the tiny model can be trusted with colours; below, one in ten is off."""


@dataclass
class Album:
    """The first picture of each kind; later ones must look the same.

    fp32: by at most 1 of 255 in at most 0.1 % of the values; ``loose`` (bf16, where a batch's
    arithmetic differs from a solo run's): by at most 3 of 255 on average.
    """

    loose: bool = False
    _pictures: dict[str, Pixels] = field(default_factory=dict)

    def compare(self, key: str, pixels: Pixels) -> str:
        first = self._pictures.setdefault(key, pixels)
        if first.shape != pixels.shape:
            return f"{key}: a picture of another size than the first"
        difference = np.abs(first.astype(np.int16) - pixels)
        if self.loose:
            return "" if difference.mean() <= 3 else f"{key}: differs by {difference.mean():.1f}"
        changed = float((difference > 0).mean())
        if difference.max() > 1 or changed > 0.001:
            return f"{key}: differs by up to {difference.max()} in {changed:.2%} of the values"
        return ""


@dataclass
class Checker:
    """``model`` is the id under /v1/models; it decides what a picture must show."""

    model: str
    album: Album = field(default_factory=Album)

    def answer(self, content: bytes, body: dict[str, Any]) -> str:
        """What is wrong with the JSON answer to ``body``."""
        try:
            items = json.loads(content)["data"]
        except (ValueError, KeyError, TypeError):
            return f"no JSON answer: {content[:200]!r}"
        return self.pictures(items, body)

    def pictures(self, items: list[dict[str, Any]], body: dict[str, Any]) -> str:
        """What is wrong with all pictures of a request, in order."""
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        wanted = [prompt for prompt in prompts for _ in range(body.get("n", 1))]
        if len(items) != len(wanted):
            return f"{len(items)} pictures instead of {len(wanted)}"
        problems = (
            self.picture(item, prompt, body, k)
            for k, (item, prompt) in enumerate(zip(items, wanted, strict=True))
        )
        return next(filter(None, problems), "")

    def picture(self, item: dict[str, Any], prompt: str, body: dict[str, Any], k: int) -> str:
        """What is wrong with picture ``k`` of a request."""
        try:
            image = Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))).convert("RGB")
        except (KeyError, OSError, binascii.Error) as error:
            return f"no picture: {error!r}"
        size = f"{image.width}x{image.height}"
        if size != body.get("size", size):
            return f"size {size} instead of {body['size']}"
        if "seed" in body and item["seed"] != (body["seed"] + k) % MAX_SEED:
            return f"seed {item['seed']} instead of {body['seed']} + {k}"
        return self._content(image, prompt, item["seed"], body)

    def _content(self, image: Image.Image, prompt: str, seed: int, body: dict[str, Any]) -> str:
        pixels = np.asarray(image)
        if self.model == "synthetic":
            spelled, expected = text_of(pixels), f"{prompt}|{seed}|{body.get('steps', 8)}"
            if spelled != expected:
                return f"picture of {spelled!r} instead of {expected!r}"
        drawn_well = min(image.size) >= TINY_SIDE and body.get("steps", TINY_STEPS) >= TINY_STEPS
        if self.model == TINY and drawn_well and (colour := colour_of(prompt)):
            seen = colour_at_centre(image)
            if seen != colour:
                return f"{seen} instead of {colour} for {prompt!r}, seed {seed}"
        if "seed" not in body:
            return ""
        return self.album.compare(f"{prompt!r}, {image.width}x{image.height}, seed {seed}", pixels)


@dataclass
class Shown(Checker):
    """Of pictures that are drawn from more than their text: ``drawn_from`` names it, and ``wrong``
    says what is wrong with one."""

    drawn_from: str = ""
    wrong: Callable[[Pixels], str] = field(kw_only=True)

    def _content(self, image: Image.Image, prompt: str, seed: int, body: dict[str, Any]) -> str:
        pixels = np.asarray(image)
        name = f"{prompt!r} from {self.drawn_from}, {image.width}x{image.height}, seed {seed}"
        problem = self.wrong(pixels)
        return f"{name}: {problem}" if problem else self.album.compare(name, pixels)


def refusal(status: int, headers: dict[str, str], content: bytes) -> str:
    """What is wrong with a 503: it must be JSON and say when to come again."""
    try:
        error = json.loads(content)["error"]
        wait_s = float(headers["retry-after"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {status} without reason or Retry-After: {content[:200]!r}"
    if not 1 <= wait_s <= 120 or not error.get("message"):
        return f"HTTP {status} with Retry-After {wait_s:g} and message {error.get('message')!r}"
    return ""


def colour_of(prompt: str) -> str | None:
    """The colour of the one shape in the middle, where the prompt asks for such a one."""
    scene = scene_of(prompt)
    if scene is None or len(scene.shapes) != 1 or scene.shapes[0].position != "centre":
        return None
    return scene.shapes[0].colour
