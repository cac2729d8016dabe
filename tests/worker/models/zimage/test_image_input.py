"""Drawing from a picture, and changing a part of one, beside drawing from text."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImageImg2ImgPipeline, ZImageInpaintPipeline
from PIL import Image

from tests.worker.models.conftest import close, draw, finish, go_on, spec
from tests.worker.models.zimage.test_pipeline import forwards
from worker.errors import InvalidRequest
from worker.models.base import OutOfMemory, Pipeline
from worker.models.zimage.image_latents import Encoded
from worker.models.zimage.pipeline import ZImageSample, ZImageStepwise
from worker.types import DrawSpec, Mask, Pixels, SourceImage


def picture(width: int = 64, height: int = 64, seed: int = 0) -> Pixels:
    """Patches of colour."""
    rough = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(rough).resize((width, height), Image.Resampling.NEAREST))


def half(width: int = 64, height: int = 64) -> Mask:
    """The right half, and a little more, is drawn anew."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 - 3 :] = 255
    return mask


def edit(
    prompt: str = "a red circle", *, mask: Mask | None = None, seed: int = 7, **changes: Any
) -> DrawSpec:
    wanted = spec(prompt, seed=seed, **{"strength": 0.6, **changes})
    how = wanted.parameters
    return replace(wanted, source=SourceImage("digest", picture(how.width, how.height), mask))


def drawn(pipeline: Pipeline, *specs: DrawSpec) -> list[Pixels]:
    encode(pipeline, *specs)
    return draw(pipeline, *specs)


def encode(pipeline: Pipeline, *specs: DrawSpec) -> None:
    for each in specs:
        if each.source is not None and each.source.encoded is None:
            pipeline.encode_image(each)


def reference(zimage: Any, wanted: DrawSpec) -> Pixels:
    """What diffusers draws."""
    how, source = wanted.parameters, wanted.source
    assert source is not None
    assert source.pixels is not None
    kind = ZImageImg2ImgPipeline if source.mask is None else ZImageInpaintPipeline
    pipeline = kind(**zimage.components)
    pipeline.set_progress_bar_config(disable=True)
    masked = {} if source.mask is None else {"mask_image": Image.fromarray(source.mask)}
    image = pipeline(
        wanted.prompt,
        image=Image.fromarray(source.pixels),
        width=how.width,
        height=how.height,
        strength=how.strength,
        num_inference_steps=how.steps,
        guidance_scale=how.guidance_scale,
        negative_prompt=how.negative_prompt,
        generator=torch.Generator("cpu").manual_seed(wanted.seed),
        **masked,
    ).images[0]
    return np.asarray(image)


WANTED = {
    "weak": {"strength": 0.3},
    "plain": {},
    "from noise": {"strength": 1.0},
    "oblong": {"width": 96, "height": 64, "steps": 5},
    "guided": {"guidance_scale": 3.5, "negative_prompt": "blue"},
}


@pytest.mark.parametrize("changes", WANTED.values(), ids=WANTED)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_draws_what_diffusers_draws(
    stepwise: ZImageStepwise, small_zimage: Any, changes: dict[str, Any], masked: bool
) -> None:
    size = changes.get("width", 64), changes.get("height", 64)
    wanted = edit(mask=half(*size) if masked else None, **changes)
    expected = reference(small_zimage, wanted)
    assert close(drawn(stepwise, wanted)[0], expected)


def test_picture_strength_and_mask_matter(stepwise: ZImageStepwise) -> None:
    """Else the comparisons here would prove nothing."""
    other = edit()
    other = replace(other, source=SourceImage("other", picture(seed=1)))
    others = [other, edit(strength=0.3), edit(mask=half()), edit(seed=8), spec()]
    (mine,) = drawn(stepwise, edit())
    assert not any(close(mine, drawn(stepwise, each)[0]) for each in others)


def test_rows_from_text_picture_and_mask_share_each_step(stepwise: ZImageStepwise) -> None:
    def specs() -> list[DrawSpec]:
        return [
            spec("blue", steps=4),
            edit(steps=8, strength=0.5),
            edit("green", mask=half(), steps=4, strength=1.0, seed=1),
        ]

    wanted = specs()
    encode(stepwise, *wanted)
    with forwards(stepwise) as rows:
        together = draw(stepwise, *wanted)
    assert rows == [3] * 4
    alone = [drawn(stepwise, each)[0] for each in specs()]
    assert all(close(t, a) for t, a in zip(together, alone, strict=True))


def test_a_picture_joins_what_is_under_way(stepwise: ZImageStepwise) -> None:
    samples = stepwise.start([spec(steps=6)])
    for _ in range(3):
        stepwise.step(samples, go_on)
    second = edit("blue", mask=half(), steps=6)
    encode(stepwise, second)
    samples += stepwise.start([second])
    finish(stepwise, samples)
    pictures = stepwise.finish(samples)
    assert close(pictures[0], draw(stepwise, spec(steps=6))[0])
    assert close(pictures[1], drawn(stepwise, edit("blue", mask=half(), steps=6))[0])


def test_the_same_again_is_the_same_to_the_byte(stepwise: ZImageStepwise) -> None:
    first, again = drawn(stepwise, edit(mask=half())), drawn(stepwise, edit(mask=half()))
    assert np.array_equal(first[0], again[0])


def test_weak_strength_keeps_the_composition(stepwise: ZImageStepwise) -> None:
    def distance(strength: float) -> float:
        (pixels,) = drawn(stepwise, edit(strength=strength, steps=8))
        (round_trip,) = drawn(stepwise, edit(strength=0.125, steps=8))
        return float(np.abs(pixels.astype(int) - round_trip).mean())

    assert 0 < distance(0.25) < distance(0.6) < distance(1.0)


def test_outside_of_the_mask_nothing_changes(stepwise: ZImageStepwise) -> None:
    wanted = edit(mask=half(), strength=1.0)
    assert wanted.source is not None
    (pixels,) = drawn(stepwise, wanted)
    pasted, mask = wanted.source.pasted(pixels), half()
    assert np.array_equal(pasted[mask == 0], picture()[mask == 0])
    assert np.array_equal(pasted[mask == 255], pixels[mask == 255])
    assert not np.array_equal(pixels[mask == 0], picture()[mask == 0])  # latents alone do not


def test_a_soft_mask_mixes() -> None:
    source = SourceImage("", np.full((1, 3, 3), 100, np.uint8), np.array([[0, 51, 255]], np.uint8))
    assert source.pasted(np.full((1, 3, 3), 200, np.uint8))[0, :, 0].tolist() == [100, 120, 200]


def test_pictures_of_one_request_are_encoded_once_and_their_pixels_let_go(
    stepwise: ZImageStepwise,
) -> None:
    first = edit()
    second = replace(first, seed=8)
    assert first.source is not None
    stepwise.encode_image(first)
    assert isinstance(first.source.encoded, Encoded)
    assert first.source.pixels is None
    one, other = draw(stepwise, first, second)
    assert close(other, drawn(stepwise, edit(seed=8))[0])
    assert not close(one, other)


def test_a_failed_encoding_changes_nothing(
    stepwise: ZImageStepwise, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    wanted = edit()
    assert wanted.source is not None
    monkeypatch.setattr(stepwise._pipeline.vae, "encode", fails)
    with pytest.raises(OutOfMemory):
        stepwise.encode_image(wanted)
    monkeypatch.undo()
    assert np.array_equal(drawn(stepwise, wanted)[0], drawn(stepwise, edit())[0])


def test_previews_show_what_stays(stepwise: ZImageStepwise) -> None:
    wanted = edit(mask=half(), strength=1.0)
    encode(stepwise, wanted)
    (sample,) = stepwise.start([wanted])
    stepwise.step([sample], go_on)
    assert isinstance(sample, ZImageSample)
    assert sample.kept is not None
    preview, image = stepwise.preview(sample), stepwise._latent_preview(sample.kept.image)
    assert preview is not None
    assert np.array_equal(preview[:, :3], image[:, :3])
    assert not np.array_equal(preview[:, 5:], image[:, 5:])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            edit(strength=0.0),
            "strength: 0 leaves the picture as it is: use more, up to 1.",
        ),
        (
            spec(strength=0.5),
            "strength: it says how far to leave a picture: send one, or leave it out.",
        ),
    ],
)
def test_strength_without_effect_is_refused(
    stepwise: ZImageStepwise, wanted: DrawSpec, message: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        stepwise.check(wanted)
    assert (refused.value.message, refused.value.param) == (message, "strength")
