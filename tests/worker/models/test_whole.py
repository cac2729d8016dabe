from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

from tests.worker.models.conftest import DEFAULTS, close, draw, go_on, small_unet, spec
from tests.worker.models.zimage.test_image_input import drawn, edit, half
from worker.errors import InvalidRequest
from worker.models.base import OnInnerStep, OutOfMemory, Pipeline
from worker.models.loading.folder import ModelLoadError
from worker.models.loading.load import adapted
from worker.models.whole import WholeCall
from worker.types import DrawSpec


@pytest.fixture
def whole(stable_diffusion: Any) -> Pipeline:
    pipeline = adapted(stable_diffusion, DEFAULTS, max_pixels=1 << 20)
    assert isinstance(pipeline, WholeCall)
    return pipeline


@pytest.fixture
def without_negative(stable_diffusion: Any) -> WholeCall:
    """A pipeline whose call takes no negative prompt."""
    components = dict(stable_diffusion.components)
    components.pop("image_encoder")
    scheduler = LCMScheduler.from_config(stable_diffusion.scheduler.config)
    components |= {"scheduler": scheduler, "unet": small_unet(time_cond_proj_dim=32)}
    pipeline = LatentConsistencyModelPipeline(**components, requires_safety_checker=False)
    whole = adapted(pipeline, DEFAULTS, max_pixels=1 << 20)
    assert isinstance(whole, WholeCall)
    return whole


@contextmanager
def forwards(pipeline: Any) -> Iterator[list[int]]:
    rows: list[int] = []
    hook = pipeline.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    yield rows
    hook.remove()


def recorder(seen: list[int]) -> OnInnerStep:
    def record(step: int) -> bool:
        seen.append(step)
        return True

    return record


def test_draws_what_the_pipeline_draws(whole: Pipeline, stable_diffusion: Any) -> None:
    wanted = spec(width=96, guidance_scale=5.0, negative_prompt="blue")
    image = stable_diffusion(
        wanted.prompt,
        width=96,
        height=64,
        num_inference_steps=4,
        guidance_scale=5.0,
        negative_prompt="blue",
        generator=torch.Generator("cpu").manual_seed(wanted.seed),
    ).images[0]
    assert np.array_equal(draw(whole, wanted)[0], np.asarray(image))


def test_a_batch_equals_solo_runs(whole: Pipeline, stable_diffusion: Any) -> None:
    specs = [spec(), spec("blue", seed=1), spec("green", seed=2)]
    with forwards(stable_diffusion) as rows:
        together = draw(whole, *specs)
    assert rows == [3] * 4
    assert all(close(t, draw(whole, s)[0]) for t, s in zip(together, specs, strict=True))
    assert not close(together[0], together[1])


def test_each_inner_step_is_reported(whole: Pipeline) -> None:
    seen: list[int] = []
    samples = whole.start([spec()])
    whole.step(samples, recorder(seen))
    assert seen == [1, 2, 3, 4]
    assert samples[0].drawn


def test_it_stops_within_a_step_and_leaves_its_samples(
    whole: Pipeline, stable_diffusion: Any
) -> None:
    samples = whole.start([spec()])
    with forwards(stable_diffusion) as rows:
        whole.step(samples, lambda step: step < 2)
    assert len(rows) == 2
    assert samples[0].step_index == 0
    whole.step(samples, go_on)
    assert np.array_equal(whole.finish(samples)[0], draw(whole, spec())[0])


def test_what_a_call_has_once_makes_the_group(whole: Pipeline) -> None:
    changes: list[dict[str, Any]] = [
        {"width": 96},
        {"height": 96},
        {"steps": 5},
        {"guidance_scale": 2.0},
        {"negative_prompt": "blue"},
        {"reproducible": True},
    ]
    groups = [sample.group for sample in whole.start([spec(**change) for change in changes])]
    plain, other = whole.start([spec(), spec("blue", seed=1)])
    assert len({*groups, plain.group}) == 7
    assert plain.group == other.group


def test_reproducible_samples_run_one_after_another(whole: Pipeline, stable_diffusion: Any) -> None:
    seen: list[int] = []
    samples = whole.start([spec(reproducible=True), spec("blue", reproducible=True)])
    with forwards(stable_diffusion) as rows:
        whole.step(samples, recorder(seen))
    assert rows == [1] * 8
    assert seen == [0, 1, 1, 2, 2, 3, 3, 4]
    assert np.array_equal(whole.finish(samples)[1], draw(whole, samples[1].spec)[0])


def test_a_failed_call_changes_nothing(
    whole: Pipeline, stable_diffusion: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    samples = whole.start([spec()])
    monkeypatch.setattr(stable_diffusion.vae, "decode", fails)
    with pytest.raises(OutOfMemory):
        whole.step(samples, go_on)
    assert not samples[0].drawn


class Plain(StableDiffusionPipeline):  # type: ignore[misc]
    """Takes what is required, and nothing else."""

    def __call__(
        self, prompt: Any, width: int, height: int, num_inference_steps: int, generator: Any
    ) -> Any:
        return super().__call__(
            prompt, height, width, num_inference_steps, guidance_scale=0.0, generator=generator
        )


@pytest.fixture
def plain(stable_diffusion: Any) -> Pipeline:
    pipeline = Plain(**stable_diffusion.components, requires_safety_checker=False)
    return adapted(pipeline, DEFAULTS, max_pixels=1 << 20)


def test_what_a_pipeline_does_not_take_is_left_out(plain: Pipeline, whole: Pipeline) -> None:
    assert np.array_equal(draw(plain, spec())[0], draw(whole, spec())[0])


def test_guidance_that_a_pipeline_does_not_take_is_refused(plain: Pipeline) -> None:
    with pytest.raises(InvalidRequest) as refused:
        plain.check(spec(guidance_scale=2.0))
    assert refused.value.param == "guidance_scale"


def test_what_a_pipeline_does_not_take_is_refused(without_negative: WholeCall) -> None:
    without_negative.check(spec(guidance_scale=8.0))
    with pytest.raises(InvalidRequest) as refused:
        without_negative.check(spec(negative_prompt="blue"))
    assert refused.value.param == "negative_prompt"


def test_a_pipeline_without_prompts_is_no_text_to_image(stable_diffusion: Any) -> None:
    pipeline = DDIMPipeline(stable_diffusion.unet, DDIMScheduler())
    with pytest.raises(ModelLoadError, match=r"DDIMPipeline does not take height, prompt, width"):
        adapted(pipeline, DEFAULTS, max_pixels=1 << 20)


def test_info_says_what_the_model_is(whole: Pipeline) -> None:
    assert (whole.info.id, whole.info.stepwise, whole.info.side_multiple) == ("small", False, 16)


def test_there_are_no_previews(whole: Pipeline) -> None:
    assert whole.preview(whole.start([spec()])[0]) is None


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_draws_from_a_picture_what_the_pipeline_of_diffusers_draws(
    whole: Pipeline, stable_diffusion: Any, masked: bool
) -> None:
    kind = StableDiffusionInpaintPipeline if masked else StableDiffusionImg2ImgPipeline
    pipeline = kind(**stable_diffusion.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    wanted = edit(mask=half() if masked else None, strength=0.75)
    source = wanted.source
    assert source is not None
    assert source.pixels is not None
    extra = {"mask_image": Image.fromarray(half()), "width": 64, "height": 64} if masked else {}
    expected = pipeline(
        wanted.prompt,
        image=Image.fromarray(source.pixels),
        strength=0.75,
        num_inference_steps=4,
        guidance_scale=0.0,
        generator=torch.Generator("cpu").manual_seed(wanted.seed),
        **extra,
    ).images[0]
    assert close(drawn(whole, wanted)[0], np.asarray(expected))


def test_variants_of_a_picture_share_a_call_and_others_do_not(
    whole: Pipeline, stable_diffusion: Any
) -> None:
    first = edit()
    second, other = replace(first, seed=8), edit()
    for each in (first, other):
        whole.encode_image(each)
    one, two, three = whole.start([first, second, other])
    assert one.group == two.group != three.group != whole.start([spec()])[0].group
    with forwards(stable_diffusion) as rows:
        together = draw(whole, first, second)
    assert set(rows) == {2}
    assert close(together[1], drawn(whole, edit(seed=8))[0])


def refusal(pipeline: Pipeline, wanted: DrawSpec) -> str | None:
    with pytest.raises(InvalidRequest) as refused:
        pipeline.check(wanted)
    return refused.value.param


def test_pictures_that_a_model_cannot_draw_from_are_refused_by_name(
    plain: Pipeline, whole: Pipeline, without_negative: WholeCall
) -> None:
    without_negative.check(edit())
    assert refusal(without_negative, edit(mask=half())) == "mask"
    assert (plain.info.edits, whole.info.edits) == (False, True)
    assert (plain.info.masks, whole.info.masks) == (False, True)
    assert refusal(plain, edit()) == "image"
    assert refusal(whole, edit(strength=0.2)) == "strength"
    assert refusal(whole, spec(strength=0.2)) == "strength"
