from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.worker.pipelines.conftest import CPU, DEFAULTS, SMALL, close, draw, spec
from worker.pipelines import decoder, levers
from worker.pipelines.loading import adapted
from worker.pipelines.random_zimage import random_zimage

WIDE = replace(SMALL, vae=SMALL.vae | {"block_out_channels": (8, 8, 8, 264), "norm_num_groups": 4})


@pytest.fixture
def wide() -> Any:
    """A pipeline whose decoder has a head too wide for flash attention, as the real one."""
    return random_zimage(WIDE, CPU, torch.float32)


def test_only_a_wide_head_is_replaced(wide: Any, small_zimage: Any) -> None:
    assert decoder.needs_wide_heads(wide.vae)
    assert not decoder.needs_wide_heads(small_zimage.vae)


@torch.no_grad()
@pytest.mark.parametrize("most_scores", [1 << 26, 40])
def test_wide_heads_compute_the_same(
    wide: Any, most_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also part by part."""
    monkeypatch.setattr(decoder, "_MOST_SCORES", most_scores)
    latents = torch.randn(1, 16, 6, 4)
    wanted = wide.vae.decode(latents, return_dict=False)[0]
    levers.apply(levers.Levers(wide_heads=True, channels_last=True), wide)
    assert torch.allclose(wide.vae.decode(latents, return_dict=False)[0], wanted, atol=1e-4)


def test_levers_can_be_taken_back(wide: Any) -> None:
    before = wide.vae.decoder.conv_norm_out
    for _ in range(2):
        plan = levers.Levers(compile_decoder=True, channels_last=True, wide_heads=True)
        levers.apply(plan, wide)
    levers.apply(levers.NONE, wide)
    assert wide.vae.decoder.conv_norm_out is before
    assert before._compiled_call_impl is None
    assert wide.vae.decoder.conv_in.weight.is_contiguous()
    (picture,) = draw(adapted(wide, DEFAULTS, 1 << 20), spec(steps=1))
    fresh = adapted(random_zimage(WIDE, CPU, torch.float32), DEFAULTS, 1 << 20)
    (wanted,) = draw(fresh, spec(steps=1))
    assert close(picture, wanted)


def test_latents_that_are_not_finite_draw_nothing(small_zimage: Any) -> None:
    decode = decoder.PictureDecoder(small_zimage)
    latents = [torch.zeros(16, 8, 8), torch.full((16, 8, 8), torch.nan)]
    with pytest.raises(FloatingPointError, match="not finite"), torch.no_grad():
        decode.taken([decode(each) for each in latents], latents)
