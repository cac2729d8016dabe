import pytest
import torch

from tests.worker.models.conftest import CPU, DEFAULTS, SMALL, draw, spec
from worker.models.acceleration import optimisations
from worker.models.acceleration.fp8 import Fp8Linear, quantized, shrink_pipeline
from worker.models.loading.load import adapted
from worker.models.loading.random_zimage import random_zimage
from worker.settings import Settings

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")


def off_by(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).float().norm() / other.float().norm())


def test_each_row_has_a_scale_of_its_own() -> None:
    rows = torch.randn(4, 64) * torch.tensor([[1e-6], [1.0], [1e3], [0.0]])
    values, scales = quantized(rows)
    assert (values.float() * scales - rows).abs().max(1).values.le(rows.abs().amax(1) / 16).all()


@torch.no_grad()
def test_a_layer_computes_nearly_the_same() -> None:
    linear = torch.nn.Linear(64, 32)
    inputs = torch.randn(2, 5, 64)
    assert off_by(Fp8Linear(linear, CPU)(inputs), linear(inputs)) < 0.04


@torch.no_grad()
@needs_cuda
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    linear = torch.nn.Linear(64, 32, bias=False).to("cuda", torch.bfloat16)
    layer = Fp8Linear(linear, torch.device("cuda"), multiply=True)
    rows = torch.randn(2, 16, 64, device="cuda", dtype=torch.bfloat16)
    assert off_by(layer(rows), linear(rows)) < 0.06
    loud = torch.cat([rows[:1], rows[1:] * 1000])
    assert torch.equal(layer(rows)[0], layer(loud)[0])


@pytest.mark.parametrize("parts", ["transformer", "all"])
def test_a_small_pipeline_still_draws_its_pictures(parts: str) -> None:
    plain = adapted(random_zimage(SMALL, CPU, torch.float32), DEFAULTS, 1 << 20)
    pipeline = random_zimage(SMALL, CPU, torch.float32)
    shrink_pipeline(pipeline, CPU, parts)
    encoder = pipeline.text_encoder.layers[0].mlp.up_proj
    assert isinstance(encoder, Fp8Linear) == (parts == "all")
    assert pipeline.transformer.layers[0].attention.to_q.weight.dtype == torch.float8_e4m3fn
    (given,) = draw(adapted(pipeline, DEFAULTS, 1 << 20), spec())
    (wanted,) = draw(plain, spec())
    assert abs(given.astype(int) - wanted.astype(int)).mean() < 3


def test_the_setting_says_what_it_does() -> None:
    plan = optimisations.choose(Settings(fp8="all"), CPU)
    assert plan.fp8 == "all"
    assert dict(plan.why)["fp8"] == "all: by the setting; widened for each call: no fp8 units"
