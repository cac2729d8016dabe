from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from tests.worker.models.conftest import close, draw, finish, go_on, spec
from worker.errors import InvalidRequest
from worker.models.base import OutOfMemory
from worker.models.zimage.pipeline import ZImageSample, ZImageStepwise
from worker.types import DrawSpec, Pixels

LONG = "a small yellow star above a large blue heart on a white background, at night"


def reference(pipeline: Any, wanted: DrawSpec) -> Pixels:
    """What diffusers draws."""
    image = pipeline(
        wanted.prompt,
        width=wanted.parameters.width,
        height=wanted.parameters.height,
        num_inference_steps=wanted.parameters.steps,
        guidance_scale=wanted.parameters.guidance_scale,
        negative_prompt=wanted.parameters.negative_prompt,
        generator=torch.Generator("cpu").manual_seed(wanted.seed),
    ).images[0]
    return np.asarray(image)


@contextmanager
def forwards(pipeline: ZImageStepwise) -> Iterator[list[int]]:
    """Rows of every forward of the transformer's main layers."""
    rows: list[int] = []
    hook = pipeline._pipeline.transformer.layers[0].register_forward_pre_hook(
        lambda _, args: rows.append(len(args[0]))
    )
    yield rows
    hook.remove()


@contextmanager
def masks(pipeline: ZImageStepwise) -> Iterator[list[Any]]:
    """Attention masks that the main layers were given."""
    seen: list[Any] = []
    hook = pipeline._pipeline.transformer.layers[0].register_forward_pre_hook(
        lambda _, args: seen.append(args[1])
    )
    yield seen
    hook.remove()


@pytest.mark.parametrize(
    "wanted",
    [
        spec(),
        spec("", seed=2**32 - 1),
        spec(LONG, width=96, height=64, steps=5),
        spec(guidance_scale=3.5),
        spec(guidance_scale=0.5, negative_prompt="blue"),
        spec(guidance_scale=4.0, negative_prompt=LONG),
        spec("long " * 200),
    ],
    ids=["plain", "empty", "oblong", "guided", "weakly", "other bucket", "cut"],
)
def test_draws_what_diffusers_draws(
    stepwise: ZImageStepwise, small_zimage: Any, wanted: DrawSpec
) -> None:
    assert close(draw(stepwise, wanted)[0], reference(small_zimage, wanted))


def test_prompt_seed_steps_and_guidance_matter(stepwise: ZImageStepwise) -> None:
    """Else the comparisons here would prove nothing."""
    others = [spec("blue"), spec(seed=8), spec(steps=5), spec(guidance_scale=4.0)]
    (picture,) = draw(stepwise, spec())
    assert not any(close(picture, draw(stepwise, other)[0]) for other in others)


def test_mixed_prompts_in_a_batch_equal_solo_runs(stepwise: ZImageStepwise) -> None:
    specs = [spec("a red circle"), spec("blue", seed=1), spec("一颗星", seed=2)]
    with forwards(stepwise) as rows:
        together = draw(stepwise, *specs)
    assert rows == [3] * 4
    assert all(close(t, draw(stepwise, s)[0]) for t, s in zip(together, specs, strict=True))


def test_guided_samples_in_a_batch_equal_solo_runs(stepwise: ZImageStepwise) -> None:
    specs = [spec(guidance_scale=2.0), spec("blue", guidance_scale=5.0, negative_prompt="red")]
    with forwards(stepwise) as rows:
        together = draw(stepwise, *specs)
    assert rows == [4] * 4
    assert all(close(t, draw(stepwise, s)[0]) for t, s in zip(together, specs, strict=True))


def test_a_newcomer_joins_at_step_3(stepwise: ZImageStepwise) -> None:
    first, second = spec(steps=6), spec("blue", seed=1, steps=6)
    samples = stepwise.start([first])
    for _ in range(3):
        stepwise.step(samples, go_on)
    samples += stepwise.start([second])
    finish(stepwise, samples)
    pictures = stepwise.finish(samples)
    assert close(pictures[0], draw(stepwise, first)[0])
    assert close(pictures[1], draw(stepwise, second)[0])


def test_five_steps_beside_eight(stepwise: ZImageStepwise) -> None:
    specs = [spec(steps=5), spec("blue", steps=8)]
    with forwards(stepwise) as rows:
        together = draw(stepwise, *specs)
    assert rows == [2] * 5 + [1] * 3
    assert all(close(t, draw(stepwise, s)[0]) for t, s in zip(together, specs, strict=True))


def test_neighbours_and_places_do_not_change_a_byte(stepwise: ZImageStepwise) -> None:
    mine, other, another = spec(), spec("blue", seed=1), spec("green", seed=2)
    before = stepwise.start([mine, other, other])
    after = stepwise.start([another, another, mine])
    finish(stepwise, before)
    finish(stepwise, after)
    assert isinstance(before[0], ZImageSample)
    assert isinstance(after[2], ZImageSample)
    assert torch.equal(before[0].latents, after[2].latents)
    assert np.array_equal(stepwise.finish(before)[0], stepwise.finish(after)[2])


@pytest.mark.parametrize("guidance_scale", [0.0, 3.0])
def test_no_forward_needs_a_mask(stepwise: ZImageStepwise, guidance_scale: float) -> None:
    with masks(stepwise) as seen:
        draw(stepwise, spec(LONG, guidance_scale=guidance_scale, steps=1))
    assert seen == [None] * (2 if guidance_scale else 1)


def test_groups_keep_lengths_apart(stepwise: ZImageStepwise) -> None:
    specs = [spec(), spec("blue"), spec(LONG), spec(width=96), spec(guidance_scale=2.0)]
    groups = [sample.group for sample in stepwise.start(specs)]
    assert groups[0] == groups[1]
    assert len(set(groups)) == 4


def test_a_guided_sample_is_two_rows(stepwise: ZImageStepwise) -> None:
    samples = stepwise.start([spec(), spec(guidance_scale=0.5)])
    assert [sample.rows for sample in samples] == [1, 2]


def test_variants_of_a_prompt_are_encoded_once(stepwise: ZImageStepwise) -> None:
    calls: list[int] = []
    hook = stepwise._pipeline.text_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    stepwise.start([spec(seed=seed) for seed in range(4)])
    stepwise.start([spec(seed=9)])
    hook.remove()
    assert len(calls) == 1


def test_a_failed_step_changes_nothing(
    stepwise: ZImageStepwise, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = stepwise.start([spec(guidance_scale=2.0, negative_prompt=LONG)])
    (sample,) = samples
    assert isinstance(sample, ZImageSample)
    latents = sample.latents.clone()
    forward, calls = stepwise._forward, []

    def fails_at_second(*args: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("no room")
        return forward(*args)

    monkeypatch.setattr(stepwise, "_forward", fails_at_second)
    with pytest.raises(OutOfMemory):
        stepwise.step(samples, go_on)
    assert (sample.step_index, sample.velocity) == (0, None)
    assert torch.equal(sample.latents, latents)
    finish(stepwise, samples)
    monkeypatch.undo()
    assert np.array_equal(stepwise.finish(samples)[0], draw(stepwise, sample.spec)[0])


def test_an_overflow_is_no_black_picture(stepwise: ZImageStepwise) -> None:
    (sample,) = stepwise.start([spec(steps=1)])
    stepwise.step([sample], go_on)
    assert isinstance(sample, ZImageSample)
    sample.latents[0, 0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match="use bfloat16"):
        stepwise.finish([sample])


def test_reproducible_samples_share_no_forward(stepwise: ZImageStepwise) -> None:
    specs = [spec(reproducible=True), spec("blue", reproducible=True)]
    with forwards(stepwise) as rows:
        together = draw(stepwise, *specs)
    assert set(rows) == {1}
    assert all(
        np.array_equal(t, draw(stepwise, s)[0]) for t, s in zip(together, specs, strict=True)
    )


def test_reproducible_samples_get_a_group_of_their_own(stepwise: ZImageStepwise) -> None:
    plain, reproducible = stepwise.start([spec(), spec(reproducible=True)])
    assert plain.group != reproducible.group


def test_reproducible_samples_use_fixed_kernels(stepwise: ZImageStepwise) -> None:
    seen: list[bool] = []
    hook = stepwise._pipeline.transformer.layers[0].register_forward_pre_hook(
        lambda *_: seen.append(torch.are_deterministic_algorithms_enabled())
    )
    draw(stepwise, spec(reproducible=True, steps=1))
    draw(stepwise, spec(steps=1))
    hook.remove()
    assert seen == [True, False]


def test_preview_begins_with_the_first_step(stepwise: ZImageStepwise) -> None:
    (sample,) = stepwise.start([spec(width=128, height=64)])
    assert stepwise.preview(sample) is None
    stepwise.step([sample], go_on)
    preview = stepwise.preview(sample)
    assert preview is not None
    assert preview.shape == (8, 16, 3)


def test_preview_changes_nothing(stepwise: ZImageStepwise) -> None:
    (sample,) = stepwise.start([spec()])
    while not sample.drawn:
        stepwise.step([sample], go_on)
        assert stepwise.preview(sample) is not None
    assert np.array_equal(stepwise.finish([sample])[0], draw(stepwise, spec())[0])


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ({"width": 100}, "width 100 is not a multiple of 16; try 96."),
        ({"height": 32}, "height 32 is under 64."),
        ({"width": 4096}, "width 4096 is over 2048."),
    ],
)
def test_sides_it_cannot_draw_are_refused(
    stepwise: ZImageStepwise, sides: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        stepwise.check(spec(**sides))
    assert (refused.value.message, refused.value.param) == (message, "size")


def test_info_says_what_the_model_is(stepwise: ZImageStepwise) -> None:
    info = stepwise.info
    assert (info.id, info.default_size, info.side_multiple) == ("small", (64, 64), 16)
    assert (info.stepwise, info.device, info.dtype) == (True, "cpu", "float32")
