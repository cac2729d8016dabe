from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.worker.models.conftest import CPU, SMALL, spec
from worker.models.loading.load import adapted
from worker.models.loading.random_zimage import TURBO, byte_tokenizer, random_zimage
from worker.models.loading.sources import RANDOM, defaults_of


def parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_turbo_has_the_sizes_of_the_real_one() -> None:
    pipeline = random_zimage(TURBO, torch.device("meta"), torch.bfloat16)
    transformer, encoder, vae = (
        parameters(model) / 1e9
        for model in (pipeline.transformer, pipeline.text_encoder, pipeline.vae)
    )
    assert (round(transformer, 2), round(encoder, 2), round(vae, 3)) == (6.15, 4.02, 0.084)
    assert pipeline.transformer.dtype == pipeline.vae.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_stay_finite_at_full_depth(dtype: torch.dtype) -> None:
    deep = replace(SMALL, transformer=SMALL.transformer | {"n_layers": 30, "n_refiner_layers": 2})
    pipeline = adapted(random_zimage(deep, CPU, dtype), defaults_of(RANDOM), 1 << 20)
    (sample,) = pipeline.start([spec(steps=8)])
    while not sample.drawn:
        pipeline.step([sample], lambda _: True)
    deviation = sample.latents.std().item()  # type: ignore[attr-defined]
    assert 0.1 < deviation < 10
    assert pipeline.finish([sample])[0].std() > 1


def test_every_worker_has_the_same_weights() -> None:
    one, other = (random_zimage(SMALL, CPU, torch.float32) for _ in range(2))
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.transformer.parameters(), other.transformer.parameters(), strict=True)
    )


def test_building_leaves_torchs_defaults() -> None:
    random_zimage(SMALL, CPU, torch.bfloat16)
    assert torch.get_default_dtype() == torch.float32
    assert torch.zeros(1).device == CPU


@pytest.mark.parametrize("text", ["a red circle", "红色的圆", "🎨\n\t"])
def test_the_tokenizer_knows_every_text(text: str) -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(tokenizer(text).input_ids) == text
