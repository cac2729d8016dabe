from random import Random

import numpy as np
import torch

from tinymodel.captions import random_scene
from tinymodel.data import pictures, sample
from tinymodel.shapes import Scene, Shape, draw, paint, plan


def test_same_seed_draws_the_same_picture() -> None:
    scene = Scene("white", (Shape("star", "red"),))
    assert draw(scene, 128, 96, seed=3).tobytes() == draw(scene, 128, 96, seed=3).tobytes()
    assert draw(scene, 128, 96, seed=3).tobytes() != draw(scene, 128, 96, seed=4).tobytes()


def test_background_and_shape_have_their_colours() -> None:
    image = np.asarray(draw(Scene("blue", (Shape("circle", "yellow", "large"),)), 160, 128))
    assert abs(image[2, 2] - np.array([40, 85, 215])).max() <= 7
    assert abs(image[64, 80] - np.array([250, 215, 45])).max() <= 7


def test_torch_draws_what_numpy_draws() -> None:
    samples = sample(8, 144, 128, seed=0)
    drawn = pictures(samples, slice(0, 8), torch.device("cpu")).permute(0, 2, 3, 1).numpy()
    expected = paint(np, samples.plan, 144, 128) * 2 - 1
    assert abs(drawn - expected).max() < 1e-4


def test_shapes_stay_inside_the_picture() -> None:
    rng = Random(0)
    scenes = [random_scene(rng) for _ in range(300)]
    planned = plan(scenes, 128, 512, rng)
    there = planned.kind >= 0
    assert (planned.x[there] * 128 >= planned.radius[there] * 128).all()
    assert (planned.y[there] * 512 >= planned.radius[there] * 128).all()


def test_middles_lie_on_the_autoencoders_grid() -> None:
    rng = Random(0)
    planned = plan([random_scene(rng) for _ in range(300)], 208, 144, rng)
    there = planned.kind >= 0
    for middles, side in ((planned.x, 208), (planned.y, 144)):
        cells = middles[there] * side / 8
        assert abs(cells - cells.round()).max() < 1e-4
        assert len(np.unique(cells.round())) > 5
