import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loadtest.checks import TINY, Album, Checker, colour_of, refusal
from worker.models.loading.sources import defaults_of
from worker.models.synthetic import SyntheticPipeline
from worker.types import DrawSpec, Parameters

BODY: dict[str, Any] = {"prompt": "a cat", "size": "64x64", "seed": 5}


def drawn(prompt: str = "a cat", width: int = 64, steps: int = 8, seed: int = 5) -> dict[str, Any]:
    spec = DrawSpec(prompt, seed, Parameters(width, 64, steps))
    pipeline = SyntheticPipeline("synthetic:step_ms=0")
    samples = pipeline.start([spec])
    for _ in range(steps):
        pipeline.step(samples, lambda _: True)
    return {"b64_json": png(pipeline.finish(samples)[0]), "seed": spec.seed}


def red(side: int) -> dict[str, Any]:
    return {"b64_json": png(np.full((side, side, 3), (220, 40, 40), np.uint8)), "seed": 5}


def png(pixels: np.ndarray[Any, Any]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_picture_that_was_asked_for_is_right() -> None:
    assert Checker("synthetic").pictures([drawn()], BODY) == ""


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (drawn(prompt="a dog"), "picture of 'a dog|5|8'"),
        (drawn(steps=7), "picture of 'a cat|5|7'"),
        (drawn(width=128), "size 128x64 instead of 64x64"),
        (drawn(seed=6), "seed 6 instead of 5"),
        ({"b64_json": "bm90IGEgcGljdHVyZQ==", "seed": 5}, "no picture"),
        ({"seed": 5}, "no picture"),
    ],
)
def test_any_other_picture_is_wrong(item: dict[str, Any], problem: str) -> None:
    assert problem in Checker("synthetic").pictures([item], BODY)


def test_missing_picture_is_wrong() -> None:
    assert "1 pictures instead of 2" in Checker("synthetic").pictures([drawn()], {**BODY, "n": 2})


def test_every_prompt_of_a_list_has_its_pictures() -> None:
    body = {**BODY, "prompt": ["a cat", "a dog"]}
    items = [drawn(), drawn(prompt="a dog", seed=6)]
    assert Checker("synthetic").pictures(items, body) == ""
    assert Checker("synthetic").pictures(items[::-1], body) != ""


def test_the_shipped_model_is_known_by_the_id_that_it_has() -> None:
    assert defaults_of("tiny").id == TINY


def test_tiny_model_must_draw_the_colour_that_was_asked_for() -> None:
    item, body = red(256), {**BODY, "size": "256x256"}
    prompt = "a large {} circle in the centre, white background"
    wrong = Checker(TINY).pictures([item], {**body, "prompt": prompt.format("blue")})
    assert "red instead of blue" in wrong
    assert Checker(TINY).pictures([item], {**body, "prompt": prompt.format("red")}) == ""


@pytest.mark.parametrize(("side", "steps"), [(64, 8), (256, 2)])
def test_tiny_model_is_not_held_to_colours_where_it_was_not_trained(side: int, steps: int) -> None:
    prompt = "a large blue circle in the centre, white background"
    body = {**BODY, "size": f"{side}x{side}", "steps": steps, "prompt": prompt}
    checker = Checker(TINY)
    assert checker.pictures([red(side)], body) == ""
    other = {"b64_json": png(np.zeros((side, side, 3), np.uint8)), "seed": 5}
    assert "differs" in checker.pictures([other], body)


def test_prompts_without_one_middle_colour_are_not_judged() -> None:
    assert colour_of("a red circle on the left") is None
    assert colour_of("a castle") is None


def test_same_request_must_give_the_same_picture() -> None:
    album, first = Album(), np.full((64, 64, 3), 100, np.uint8)
    rounded, other = first.copy(), first.copy()
    rounded[0, 0, 0] += 1
    other[0, 0, 0] += 2
    assert album.compare("key", first) == ""
    assert album.compare("key", rounded) == ""
    assert "differs by up to 2" in album.compare("key", other)


@pytest.mark.parametrize(
    ("headers", "content", "right"),
    [
        ({"retry-after": "5"}, b'{"error": {"message": "full"}}', True),
        ({}, b'{"error": {"message": "full"}}', False),
        ({"retry-after": "300"}, b'{"error": {"message": "full"}}', False),
        ({"retry-after": "5"}, b"<html>503</html>", False),
        ({"retry-after": "5"}, b'{"error": {"message": ""}}', False),
    ],
)
def test_refusal_must_say_why_and_when(
    headers: dict[str, str], content: bytes, right: bool
) -> None:
    assert (refusal(503, headers, content) == "") is right
