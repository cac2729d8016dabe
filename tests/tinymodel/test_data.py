import numpy as np

from tinymodel import tokenizer
from tinymodel.captions import is_held_out, scene_of
from tinymodel.data import LONG, SHORT, held_out_prompts, sample, size_weights


def test_samples_depend_on_the_seed_alone() -> None:
    one, two, other = (sample(20, 128, 128, seed) for seed in (1, 1, 2))
    assert (one.short == two.short).all()
    assert (one.plan.x == two.plan.x).all()
    assert (one.short != other.short).any()


def test_captions_fill_their_buckets() -> None:
    samples = sample(200, 128, 128, seed=0)
    assert (samples.long > 0).sum(1).min() > SHORT
    assert (samples.long > 0).sum(1).max() <= LONG
    assert (samples.short[:, :, 1] > 0).all()


def test_no_training_caption_asks_for_a_held_out_scene() -> None:
    words = tokenizer.build()
    scenes = [
        scene_of(words.decode(row[row > 3])) for row in sample(200, 128, 128, seed=0).short[:, 0]
    ]
    assert not any(is_held_out(scene) for scene in scenes if scene)


def test_held_out_prompts_alternate_between_languages() -> None:
    prompts = [prompt for prompt, _ in held_out_prompts(20)]
    assert [prompt.isascii() for prompt in prompts] == [True, False] * 10


def test_sizes_are_multiples_of_16_and_some_need_padding() -> None:
    sizes = np.array(list(size_weights()))
    assert (sizes % 16 == 0).all()
    assert ((sizes // 16).prod(1) % 32 != 0).any()
