from pathlib import Path

import pytest
from diffusers import ZImagePipeline

from tinymodel import build, evaluate
from tinymodel.captions import scene_of
from tinymodel.judge import judge
from tinymodel.train_vae import round_trips

FILE_LIMIT = 16 * 1024 * 1024


@pytest.fixture(scope="module")
def pipe() -> ZImagePipeline:
    return evaluate.load()


@pytest.mark.parametrize(("prompt", "size"), evaluate.SHOWN)
def test_prompt_is_drawn_right(pipe: ZImagePipeline, prompt: str, size: tuple[int, int]) -> None:
    scene = scene_of(prompt)
    assert scene is not None
    verdict = judge(evaluate.draw(pipe, prompt, *size, seed=0), scene)
    assert vars(verdict) == dict.fromkeys(vars(verdict), True)


def test_readmes_say_what_their_pictures_were_asked_for() -> None:
    root = Path(__file__).parents[2]
    for readme in (root / "README.md", root / "README.zh-CN.md"):
        text = readme.read_text()
        assert [prompt for prompt, _ in evaluate.SHOWN if f"“{prompt}”" not in text] == []


def test_seeds_draw_different_pictures(pipe: ZImagePipeline) -> None:
    one, two = (evaluate.draw(pipe, "a red star", 128, 128, seed) for seed in (0, 1))
    assert one.tobytes() != two.tobytes()


def test_unknown_words_change_nothing(pipe: ZImagePipeline) -> None:
    plain, adorned = (
        evaluate.draw(pipe, prompt, 128, 128, seed=0)
        for prompt in (
            "a red star on a white background",
            "a majestic red star on a white background",
        )
    )
    assert plain.tobytes() == adorned.tobytes()


def test_empty_prompt_draws(pipe: ZImagePipeline) -> None:
    assert evaluate.draw(pipe, "", 128, 128, seed=0).size == (128, 128)


@pytest.mark.parametrize("side", [128, 256])
def test_autoencoder_keeps_what_a_picture_shows(pipe: ZImagePipeline, side: int) -> None:
    assert round_trips(pipe.vae, side, count=10) >= {128: 8, 256: 10}[side]


def test_every_file_is_small() -> None:
    sizes = [path.stat().st_size for path in build.WEIGHTS.rglob("*") if path.is_file()]
    assert max(sizes) <= FILE_LIMIT
    assert sum(sizes) <= FILE_LIMIT
