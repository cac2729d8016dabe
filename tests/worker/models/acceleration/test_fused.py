"""On a GPU, or with ``TRITON_INTERPRET=1`` and Triton installed, anywhere."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.worker.models.conftest import INTERPRETED, SMALL, needs_triton
from tests.worker.models.conftest import KERNEL_DEVICE as DEVICE
from tests.worker.models.loras.made import tensors
from worker.models.acceleration import fp8, optimisations
from worker.models.loading.random_zimage import random_zimage
from worker.models.loras.conversion import Pair, layers_of
from worker.models.loras.device import OnDevice
from worker.models.zimage.dense import DenseTransformer
from worker.models.zimage.low_rank import Scaled, added

fused = pytest.importorskip("worker.models.acceleration.fused", exc_type=ImportError)
pytestmark = needs_triton


@pytest.fixture(scope="module")
def pipeline() -> Any:
    few_layers = SMALL.transformer | {"n_layers": 2}  # the interpreter is slow
    return random_zimage(replace(SMALL, transformer=few_layers), DEVICE, torch.float32)


@pytest.mark.parametrize("rows", [1, 2])
@torch.no_grad()
def test_the_transformer_computes_the_same(pipeline: Any, rows: int) -> None:
    optimisations.apply(optimisations.NONE, pipeline)
    plain = DenseTransformer(pipeline.transformer)
    fast = DenseTransformer(pipeline.transformer, kernels=True)
    hidden = torch.randn(rows, 32, 32, device=DEVICE)
    counts = torch.tensor([20, 32][:rows], device=DEVICE)
    captions = plain.captions(hidden, counts)
    assert torch.allclose(fast.captions(hidden, counts), captions, atol=1e-5)
    latents = torch.randn(rows, 16, 6, 10, device=DEVICE)
    times = torch.linspace(0.1, 0.9, rows, device=DEVICE)
    wanted = plain(latents, times, captions)
    assert torch.allclose(fast(latents, times, captions), wanted, atol=1e-5)


@torch.no_grad()
def test_the_text_encoder_computes_the_same_and_comes_back(pipeline: Any) -> None:
    optimisations.apply(optimisations.NONE, pipeline)
    encoder = pipeline.text_encoder
    before = list(encoder.modules())
    tokens = torch.arange(7, device=DEVICE)[None]
    wanted = encoder(tokens).last_hidden_state
    optimisations.apply(optimisations.Optimisations(kernels=True), pipeline)
    assert isinstance(encoder.layers[0].self_attn.q_norm, fused.Norm)
    assert torch.allclose(encoder(tokens).last_hidden_state, wanted, atol=1e-4)
    optimisations.apply(optimisations.NONE, pipeline)
    assert list(encoder.modules()) == before


@pytest.mark.skipif(INTERPRETED, reason="the interpreter rounds to fp8 in another way")
@pytest.mark.parametrize("width", [96, 1000])
def test_rows_become_8_bits_as_without_the_kernel(width: int) -> None:
    rows = torch.randn(5, width, device=DEVICE) * torch.logspace(-3, 3, 5, device=DEVICE)[:, None]
    rows[4] = 0
    wanted_values, wanted_scales = fp8.quantized(rows)
    values, scales = fused.quantized(rows)
    assert torch.allclose(scales, wanted_scales)
    difference = (values.float() - wanted_values.float()).abs()  # halves may go either way
    assert (difference <= wanted_values.float().abs() / 8 + 2**-9).all()
    assert (difference > 0).float().mean() < 0.01


def wide(narrow: Any) -> torch.Tensor:
    values: torch.Tensor = narrow.values.float() * narrow.factors.view(*narrow.values.shape[:2], 1)
    return values


@pytest.mark.parametrize("added", [False, True])
def test_a_norm_writes_8_bits_itself(added: bool) -> None:
    """Tokens of very different sizes each get a factor of their own."""
    inputs = torch.randn(2, 5, 96, device=DEVICE) * torch.logspace(-3, 3, 5, device=DEVICE)[:, None]
    changes = torch.randn(2, 4 * 96, device=DEVICE)
    norm = torch.nn.RMSNorm(96, 1e-5, device=DEVICE)
    gate, scale = fused.By(norm, changes, 1), fused.By(norm, changes, 2)
    more = (gate, torch.randn_like(inputs)) if added else (None, None)
    wanted_sum, wanted = fused.normalised(inputs, scale, *more)
    total, found = fused.normalised(inputs, scale, *more, narrow=True)
    assert torch.equal(total, wanted_sum)
    assert found.values.dtype == torch.float8_e4m3fn
    off = (wide(found) - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert off.max() < (0.2 if INTERPRETED else 0.04)


def test_gating_writes_8_bits_itself() -> None:
    both = torch.randn(2, 5, 2 * 96, device=DEVICE)
    gate, value = both.chunk(2, -1)
    wanted = torch.nn.functional.silu(gate) * value
    off = (wide(fused.gated_narrow(both)) - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert off.max() < (0.2 if INTERPRETED else 0.04)


@torch.no_grad()
def test_rows_with_adapters_are_the_same_too(pipeline: Any) -> None:
    optimisations.apply(optimisations.NONE, pipeline)
    layers = layers_of(pipeline.transformer)
    names = ("layers.0.attention.to_k", "layers.1.feed_forward.w2", "layers.1.adaLN_modulation.0")
    pairs = {n: Pair(*(side.to(DEVICE) for side in ab)) for n, ab in tensors(layers, names).items()}
    rows = [(), (Scaled(OnDevice("x", pairs, 0), 1.5),)]
    latents = torch.randn(2, 16, 6, 10, device=DEVICE)
    times = torch.tensor([0.1, 0.9], device=DEVICE)
    captions = torch.randn(2, 32, 96, device=DEVICE)
    plain = DenseTransformer(pipeline.transformer)
    # Packed products would not hear of adapters.
    ways = {"multiply": None, "gate": None, "projecting": None}
    fast = DenseTransformer(pipeline.transformer, kernels=True, ways=ways)
    with plain.adapted(rows):
        wanted = plain(latents, times, captions)
    with fast.adapted(rows):
        assert torch.allclose(fast(latents, times, captions), wanted, atol=1e-5)
    without = plain(latents, times, captions)
    assert torch.allclose(without[0], wanted[0], atol=1e-5)
    assert not torch.allclose(without[1], wanted[1], atol=1e-2)


def test_what_is_added_to_a_product_of_8_bits_is_not_passed_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = fp8.Fp8Linear(torch.nn.Linear(16, 8, device=DEVICE), DEVICE, multiply=True)
    nothing = torch.zeros(1, 3, 8, device=DEVICE)
    monkeypatch.setattr(fp8.Fp8Linear, "product", lambda *_: nothing.clone())
    monkeypatch.setattr(fp8, "quantized", None)  # torch's own way takes six passes over memory
    inputs = torch.ones(1, 3, 16, device=DEVICE)
    pair = Pair(torch.ones(2, 16, device=DEVICE), torch.ones(8, 2, device=DEVICE))
    model = torch.nn.Sequential(layer)
    assert torch.equal(fused.products(inputs, layer)[0], nothing)
    with torch.no_grad(), added(model, [(Scaled(OnDevice("x", {"0": pair}, 0), 0.5),)]):
        assert torch.equal(fused.products(inputs, layer)[0], nothing + 16)
