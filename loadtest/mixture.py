"""Requests of four kinds for the shipped model, each with what its picture must show: from text,
from a picture, within a mask, with adapters.

Pictures and masks are painted here, the same in every run. They come with the request as files, or
were sent before and are named by their ids, as uploads or as pictures of the gallery.
"""

import base64
import io
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from loadtest import prompts
from loadtest.checks import Checker, Pixels, Shown
from loadtest.client import EDITS, TIMEOUT_S, Client, Way
from tinymodel.judge import look
from tinymodel.shapes import Scene, Shape
from tinymodel.shapes import draw as painted

KINDS = ("text", "image", "mask", "lora")
ADAPTERS = {"night": "loadtest-night", "stars": "loadtest-stars"}
"""Those in ``tinymodel/loras`` and what the cell calls them: the one draws a black background, the
other stars in place of whatever shape."""
SIDE = 256
_COLOURS = ("green", "purple", "orange")
_SEEDS = 2
_WEAK = 0.3
_MIN_OVERLAP = 0.9
"""Of what is drawn with what the picture shows that it goes on from: 0.98 at ``_WEAK``, and 0.5 of
one that begins with nothing but noise."""
_INK = 200  # of 255: darker in one channel than a white background
_KEPT_S, _POLL_S = 30.0, 0.2
_LARGE = (("circle", "red", "left"), ("square", "blue", "right"))

Wrong = Callable[[Pixels], str]


class NotPrepared(Exception):
    """The cell did not take or draw what the load begins with; the message says what it said."""


@dataclass(frozen=True)
class Asked:
    """One request: ``body`` and, by ``way``, its files and its checker."""

    kind: str
    body: dict[str, Any]
    way: Way

    def of_upload(self, id: str) -> "Asked":
        """The same by the id of its picture, which was sent just now."""
        return Asked(self.kind, self.body | {"image": id}, Way(EDITS, {}, self.way.checker))


@dataclass(frozen=True)
class Source:
    """A picture to go on from, or a mask. ``shape`` is what it shows; ``id``: by which the cell
    knows it, as an upload or of its gallery."""

    name: str
    shape: str
    png: bytes
    id: str

    @property
    def pixels(self) -> Pixels:
        return np.asarray(Image.open(io.BytesIO(self.png)).convert("RGB"))


class Mixture:
    """For one cell, which has ``ADAPTERS``. What is asked for again must look the same."""

    def __init__(self, client: Client) -> None:
        self._checker = client.checker
        larges = [_sent(client, f"large {each[0]}", each[0], _large(*each)) for each in _LARGE]
        self._larges = [*larges, *(_redrawn(client, source) for source in larges)]
        self._pair = _sent(client, "pair", "heart", _pair())
        self._mask = _sent(client, "right half", "", _right_half())

    def asked(self, kind: str, rng: random.Random) -> Asked:
        """One of ``kind``, by chance."""
        makers = {"text": self._text, "image": self._image, "mask": self._masked}
        return makers.get(kind, self._adapted)(rng)

    def _text(self, rng: random.Random) -> Asked:
        return Asked("text", _wish(rng, rng.choice(prompts.SHAPES)), Way(checker=self._checker))

    def _image(self, rng: random.Random) -> Asked:
        source = rng.choice(self._larges)
        body = _wish(rng, source.shape) | {"strength": _WEAK}
        checker = self._shown(source.name, _keeps(source.pixels))
        return _edit("image", body, {"image": source}, checker, by_id=rng.random() < 0.5)

    def _masked(self, rng: random.Random) -> Asked:
        colour = rng.choice(_COLOURS)
        prompt = f"a small red star left of a small {colour} heart on a white background"
        body = _wish(rng, "") | {"prompt": prompt}
        checker = self._shown(self._pair.name, _changes_right(self._pair.pixels, colour))
        sources = {"image": self._pair, "mask": self._mask}
        return _edit("mask", body, sources, checker, by_id=rng.random() < 0.5)

    def _adapted(self, rng: random.Random) -> Asked:
        chosen = rng.choice((("night",), ("stars",), ("night", "stars")))
        body = _wish(rng, rng.choice(prompts.SHAPES))
        body["lora"] = [{"name": ADAPTERS[name], "scale": 1.0} for name in chosen]
        return Asked("lora", body, Way(checker=self._shown(" and ".join(chosen), _adapts(chosen))))

    def _shown(self, drawn_from: str, wrong: Wrong) -> Checker:
        return Shown(self._checker.model, self._checker.album, drawn_from, wrong=wrong)


def _wish(rng: random.Random, shape: str) -> dict[str, Any]:
    """Of a smaller family than ``prompts.wish``, so that there is much to compare."""
    prompt = f"a large {rng.choice(_COLOURS)} {shape} in the centre, white background"
    return prompts.wish(rng) | {"prompt": prompt, "seed": 1000 * rng.randrange(_SEEDS)}


def _edit(
    kind: str, body: dict[str, Any], sources: dict[str, Source], checker: Checker, *, by_id: bool
) -> Asked:
    if by_id:
        ids = {name: source.id for name, source in sources.items()}
        return Asked(kind, body | ids, Way(EDITS, {}, checker))
    files = {name: source.png for name, source in sources.items()}
    return Asked(kind, body, Way(EDITS, files, checker))


# What a picture must show


def _keeps(source: Pixels) -> Wrong:
    """The composition of ``source``, drawn anew."""

    def wrong(pixels: Pixels) -> str:
        if np.array_equal(pixels, source):
            return "it is the picture that was sent"
        a, b = _ink(pixels), _ink(source)
        overlap = float((a & b).sum() / max(1, (a | b).sum()))
        return "" if overlap >= _MIN_OVERLAP else f"the composition is another: {overlap:.2f}"

    return wrong


def _changes_right(source: Pixels, colour: str) -> Wrong:
    """The left half of ``source``, value for value, and a shape of ``colour`` in the right one."""
    middle = source.shape[1] // 2

    def wrong(pixels: Pixels) -> str:
        if not np.array_equal(pixels[:, :middle], source[:, :middle]):
            return "it is another outside of the mask"
        _, blobs = look(pixels.astype(np.float32))
        right = [blob.colour for blob in blobs if blob.x > 0.5]
        return "" if right == [colour] else f"{right} instead of {colour} within the mask"

    return wrong


def _adapts(adapters: tuple[str, ...]) -> Wrong:
    """What ``adapters`` do: of both together the background alone is sure."""

    def wrong(pixels: Pixels) -> str:
        background, blobs = look(pixels.astype(np.float32))
        if (background == "black") != ("night" in adapters):
            return f"a {background} background"
        kinds = [blob.kind for blob in blobs]
        return f"{kinds} instead of a star" if adapters == ("stars",) and kinds != ["star"] else ""

    return wrong


def _ink(pixels: Pixels) -> Any:
    return pixels.min(axis=2) < _INK


# What the load begins with


def _sent(client: Client, name: str, shape: str, image: Image.Image) -> Source:
    png = _png(image)
    done, id = client.upload(png)
    if not id:
        raise NotPrepared(f"{name}: {done.error}")
    return Source(name, shape, png, id)


def _redrawn(client: Client, source: Source) -> Source:
    """A picture of the gallery that was drawn from ``source``."""
    prompt = f"a large {source.shape} in the centre, white background"
    body: dict[str, Any] = {"prompt": prompt, "image": source.id, "strength": _WEAK, "seed": 7}
    answer = client.session.post(client.url + EDITS, json=body, timeout=TIMEOUT_S)
    if answer.status_code != 200:
        raise NotPrepared(f"{source.name}: HTTP {answer.status_code}: {answer.text[:300]}")
    png = base64.b64decode(answer.json()["data"][0]["b64_json"])
    id = f"{answer.headers['X-Request-ID']}-0"
    deadline = time.monotonic() + _KEPT_S
    kept = f"{client.url}/v1/images/{id}/details"
    while client.session.get(kept, timeout=TIMEOUT_S).status_code != 200:
        if time.monotonic() > deadline:
            raise NotPrepared(f"{source.name}: {id} is not in the gallery after {_KEPT_S:g} s")
        time.sleep(_POLL_S)
    return Source(f"{source.name} of the gallery", source.shape, png, id)


def _large(kind: str, colour: str, position: str) -> Image.Image:
    """Not where the model would draw it by itself."""
    return painted(Scene("white", (Shape(kind, colour, "large", position),)), SIDE, SIDE)


def _pair() -> Image.Image:
    shapes = Shape("star", "red", "small", "left"), Shape("heart", "blue", "small", "right")
    return painted(Scene("white", shapes), SIDE, SIDE)


def _right_half() -> Image.Image:
    mask = Image.new("RGBA", (SIDE, SIDE), "black")
    mask.paste((0, 0, 0, 0), (SIDE // 2, 0, SIDE, SIDE))
    return mask


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()
