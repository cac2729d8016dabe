"""What becomes of pictures that the shipped model goes on from, as its judge sees it."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.worker.models.conftest import draw
from tinymodel import evaluate
from tinymodel.captions import scene_of
from tinymodel.judge import judge
from worker.models.loading.folder import Defaults
from worker.models.loading.load import adapted
from worker.models.zimage.pipeline import ZImageStepwise
from worker.types import DrawSpec, Mask, Parameters, Pixels, SourceImage

BEFORE = "a small red star left of a small blue heart on a white background"
SIDE = 128

Draw = Callable[..., Pixels]


@pytest.fixture(scope="module")
def drawing() -> Iterator[Draw]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    defaults = Defaults("tiny", steps=8, guidance_scale=0.0, size=(SIDE, SIDE))
    pipeline = adapted(evaluate.load(), defaults, max_pixels=1 << 20)
    assert isinstance(pipeline, ZImageStepwise)

    def one(prompt: str, seed: int, source: SourceImage | None = None, **how: Any) -> Pixels:
        width, height = how.pop("size", (SIDE, SIDE))
        spec = DrawSpec(prompt, seed, Parameters(width, height, 8, **how), source)
        if source is None:
            return draw(pipeline, spec)[0]
        pipeline.encode_image(spec)
        return source.pasted(draw(pipeline, spec)[0])

    yield one
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def before(drawing: Draw) -> Pixels:
    picture = drawing(BEFORE, 3)
    assert shows(picture, BEFORE)
    return picture


def shows(pixels: Pixels, prompt: str) -> bool:
    scene = scene_of(prompt)
    assert scene is not None
    return judge(Image.fromarray(pixels), scene).ok


def outlines(pixels: Pixels) -> Any:
    return pixels.min(axis=2) < 200


def alike(one: Pixels, other: Pixels) -> float:
    """How much of what is drawn covers each other."""
    a, b = outlines(one), outlines(other)
    return float((a & b).sum() / (a | b).sum())


def right_half() -> Mask:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:, SIDE // 2 :] = 255
    return mask


def test_a_weak_strength_keeps_the_composition_and_takes_the_new_colours(
    drawing: Draw, before: Pixels
) -> None:
    after = "a small green star left of a small green heart on a white background"
    lower = np.roll(before, 16, axis=0)  # the model itself draws them in the middle
    weak, strong = (drawing(after, 8, SourceImage("", lower), strength=s) for s in (0.25, 1.0))
    assert shows(weak, after)
    assert alike(weak, lower) > 0.85
    assert alike(strong, lower) < 0.3


@pytest.mark.parametrize("seed", range(3))
def test_a_mask_changes_its_part_alone(drawing: Draw, before: Pixels, seed: int) -> None:
    after = "a small red star left of a small green heart on a white background"
    picture = drawing(after, seed, SourceImage("", before, right_half()))
    assert shows(picture, after)
    assert np.array_equal(picture[:, : SIDE // 2], before[:, : SIDE // 2])


def test_what_is_around_an_extended_picture_fits_it(drawing: Draw, before: Pixels) -> None:
    """The star alone, then drawn on to the right: the background goes on, and the heart is back."""
    star = before[:, : SIDE // 2]
    canvas = np.pad(star, ((0, 0), (0, SIDE // 2), (0, 0)), "edge")
    picture = drawing(BEFORE, 5, SourceImage("", canvas, right_half()))
    assert np.array_equal(picture[:, : SIDE // 2], star)
    assert shows(picture, BEFORE)
