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
from worker.api.schemas.edit_wire import UPSCALE_STRENGTH
from worker.engine.request import Drawn
from worker.generation.tiling import Tiles, Tiling
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


def test_a_picture_twice_as_large_shows_the_same_and_no_seam(drawing: Draw, before: Pixels) -> None:
    larger = Image.fromarray(before).resize((2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS)
    source = SourceImage("", np.asarray(larger))
    how = Parameters(2 * SIDE, 2 * SIDE, 8, strength=UPSCALE_STRENGTH)
    tiles = Tiles.of(source, (SIDE, SIDE), 16)
    tiling = Tiling(DrawSpec(BEFORE, 3, how, source), tiles)
    pasted = np.asarray(larger).copy()
    for index, spec in enumerate(tiling.specs):
        tile = drawing(BEFORE, spec.seed, spec.source, strength=UPSCALE_STRENGTH)
        row, column = divmod(index, len(tiles.across.starts))
        y, x = tiles.down.starts[row], tiles.across.starts[column]
        pasted[y : y + SIDE, x : x + SIDE] = tile
        whole = tiling.take(Drawn(index, spec, tile, 0.0, 0.0, 1)).pixels
    assert shows(whole, BEFORE)
    assert alike(whole, np.asarray(larger)) > 0.8
    edges = {*tiles.across.starts, *(start + SIDE for start in tiles.across.starts)}
    edges -= {0, 2 * SIDE}
    assert worst_edge(pasted, edges) > 2 > 0.5 > worst_edge(whole, edges)


def worst_edge(pixels: Pixels, edges: set[int]) -> float:
    """By how many of 255 levels neighbours differ more across one of ``edges``, rows and columns,
    than beside it."""
    found = []
    for turned in (pixels, pixels.transpose(1, 0, 2)):
        steps = np.abs(np.diff(turned.astype(int), axis=1)).mean(axis=(0, 2))
        found += [steps[x - 1] - np.delete(steps[x - 7 : x + 6], 6).mean() for x in edges]
    return float(max(found))
