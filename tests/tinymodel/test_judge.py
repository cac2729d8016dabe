from dataclasses import replace
from random import Random

import numpy as np
import pytest
from PIL import Image

from tinymodel.captions import random_scene
from tinymodel.judge import colour_at_centre, judge
from tinymodel.shapes import KINDS, PALETTE, POSITIONS, Scene, Shape, draw, paint, plan

SHAPE = Shape("heart", "red", "large", "left")
SCENE = Scene("white", (SHAPE,))


@pytest.mark.parametrize("size", [(128, 128), (256, 256), (384, 160), (128, 320)])
def test_drawn_scenes_are_right(size: tuple[int, int]) -> None:
    rng = Random(sum(size))
    scenes = [random_scene(rng) for _ in range(30)]
    wrong = [s for n, s in enumerate(scenes) if not judge(draw(s, *size, seed=n), s).ok]
    assert wrong == []


@pytest.mark.parametrize("tilt", [-0.15, 0.15])
def test_tilted_shapes_are_right(tilt: float) -> None:
    for kind in KINDS:
        scene = Scene("white", (replace(SHAPE, kind=kind),))
        planned = plan([scene], 128, 128, Random(0))
        pixels = paint(np, replace(planned, tilt=planned.tilt * 0 + tilt), 128, 128)[0]
        assert judge(Image.fromarray((pixels * 255).astype(np.uint8)), scene).ok, kind


@pytest.mark.parametrize("kind", KINDS)
def test_kind_is_told_from_all_others(kind: str) -> None:
    image = draw(Scene("grey", (replace(SHAPE, kind=kind),)), 192, 192)
    found = [k for k in KINDS if judge(image, Scene("grey", (replace(SHAPE, kind=k),))).shape_ok]
    assert found == [kind]


@pytest.mark.parametrize("colour", sorted(set(PALETTE) - {"white"}))
def test_colour_is_told_from_all_others(colour: str) -> None:
    image = draw(Scene("white", (replace(SHAPE, colour=colour),)), 128, 128)
    asked = [Scene("white", (replace(SHAPE, colour=c),)) for c in PALETTE]
    found = [scene.shapes[0].colour for scene in asked if judge(image, scene).colour_ok]
    assert found == [colour]


@pytest.mark.parametrize("position", POSITIONS)
def test_position_is_told_from_all_others(position: str) -> None:
    image = draw(Scene("white", (replace(SHAPE, position=position, size="small"),)), 256, 256)
    asked = {p: Scene("white", (replace(SHAPE, position=p),)) for p in POSITIONS}
    assert [p for p, scene in asked.items() if judge(image, scene).position_ok] == [position]


def test_wrong_background_is_wrong_alone() -> None:
    verdict = judge(draw(SCENE, 128, 128), replace(SCENE, background="pink"))
    assert (verdict.background_ok, verdict.colour_ok, verdict.ok) == (False, True, False)


def test_wrong_size_is_wrong_alone() -> None:
    verdict = judge(draw(SCENE, 128, 128), Scene("white", (replace(SHAPE, size="small"),)))
    assert (verdict.size_ok, verdict.shape_ok, verdict.ok) == (False, True, False)


def test_swapped_colours_of_two_shapes_are_wrong() -> None:
    one, two = Shape("star", "red", None, "left"), Shape("ring", "blue", None, "right")
    swapped = Scene("white", (replace(one, colour="blue"), replace(two, colour="red")))
    assert not judge(draw(Scene("white", (one, two)), 192, 192), swapped).ok


def test_shape_too_many_is_wrong() -> None:
    both = Scene("white", (SHAPE, Shape("star", "blue", None, "right")))
    image = draw(replace(both, shapes=(replace(SHAPE, size=None), both.shapes[1])), 192, 192)
    assert not judge(image, Scene("white", (replace(SHAPE, size=None),))).shape_ok


def test_empty_picture_shows_no_shape() -> None:
    verdict = judge(Image.new("RGB", (128, 128), "white"), SCENE)
    assert vars(verdict) == {
        "background_ok": True,
        "colour_ok": False,
        "shape_ok": False,
        "position_ok": False,
        "size_ok": False,
    }


def test_colour_at_the_centre_is_named() -> None:
    assert colour_at_centre(draw(Scene("white", (Shape("circle", "green"),)), 64, 64)) == "green"
