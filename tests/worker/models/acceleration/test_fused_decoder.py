"""On a GPU, or with ``TRITON_INTERPRET=1`` and Triton installed, anywhere."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.worker.models.conftest import KERNEL_DEVICE as DEVICE
from tests.worker.models.conftest import SMALL, needs_triton
from worker.models.acceleration import optimisations
from worker.models.loading.random_zimage import random_zimage

fused_decoder = pytest.importorskip(
    "worker.models.acceleration.fused_decoder", exc_type=ImportError
)
pytestmark = needs_triton


@pytest.fixture(scope="module")
def pipeline() -> Any:
    shortcuts = SMALL.vae | {"block_out_channels": (8, 16, 8, 8)}  # where channels change
    pipeline = random_zimage(replace(SMALL, vae=shortcuts), DEVICE, torch.float32)
    for name, parameter in pipeline.vae.decoder.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return pipeline


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize(("channels", "groups", "side"), [(8, 4, 5), (12, 4, 3), (32, 4, 70)])
@torch.no_grad()
def test_a_norm_of_any_size(
    channels: int, groups: int, side: int, shifted: bool, silu: bool
) -> None:
    """Also of more cells than one part sums up."""
    norm = torch.nn.GroupNorm(groups, channels, device=DEVICE)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    image = torch.randn(1, channels, side, side + 1, device=DEVICE) * 3 + 1
    bias = torch.randn(channels, device=DEVICE) if shifted else None
    wanted = norm(image if bias is None else image + bias[:, None, None])
    given = fused_decoder.normed(image, norm, bias, silu=silu)
    assert torch.allclose(given, F.silu(wanted) if silu else wanted, atol=1e-4)


SHAPES = [(8, 5, 7), (12, 1, 3), (64, 33, 40)]


@pytest.mark.parametrize(("channels", "height", "width"), SHAPES)
@torch.no_grad()
@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
def test_four_small_convolutions_make_one_of_doubled_cells(
    channels: int, height: int, width: int
) -> None:
    image = torch.randn(1, channels, height, width, device=DEVICE)
    conv = torch.nn.Conv2d(channels, channels + 4, 3, padding=1, device=DEVICE)
    wanted = conv(F.interpolate(image, scale_factor=2.0, mode="nearest"))
    phases = F.conv2d(image, fused_decoder.phase_weights(conv.weight), padding=1)
    assert torch.allclose(fused_decoder.interleaved(phases, conv.bias), wanted, atol=1e-5)


@pytest.mark.parametrize(("channels", "height", "width"), SHAPES)
@torch.no_grad()
def test_biases_are_added(channels: int, height: int, width: int) -> None:
    image, more = torch.randn(2, 1, channels, height, width, device=DEVICE)
    bias, more_bias = torch.randn(2, channels, device=DEVICE)
    wanted = image + bias[:, None, None]
    assert torch.allclose(fused_decoder.added(image.clone(), bias), wanted)
    given = fused_decoder.added(image, bias, more, more_bias)
    assert torch.allclose(given, wanted + more + more_bias[:, None, None], atol=1e-6)


@pytest.mark.parametrize("cells", [1, 30, 2500])
@torch.no_grad()
def test_attention_of_any_number_of_cells(cells: int) -> None:
    """Also of more than are attended to at once."""
    query, key, value = torch.randn(3, cells, 16, device=DEVICE)
    wanted = F.scaled_dot_product_attention(query[None], key[None], value[None], scale=0.3)[0]
    assert torch.allclose(fused_decoder.attended(query, key, value, 0.3), wanted, atol=1e-5)


@torch.no_grad()
@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
def test_the_decoder_computes_the_same_and_comes_back(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimisations.apply(optimisations.NONE, pipeline)
    before = list(pipeline.vae.decoder.modules())
    latents = torch.randn(1, 16, 6, 4, device=DEVICE)
    wanted = pipeline.vae.decode(latents, return_dict=False)[0]
    for _ in range(2):
        optimisations.apply(optimisations.Optimisations(kernels=True), pipeline)
    decoder = pipeline.vae.decoder
    assert isinstance(decoder.mid_block.resnets[0], fused_decoder.Residual)
    assert isinstance(decoder.mid_block.attentions[0], fused_decoder.Attention)
    assert isinstance(decoder.up_blocks[0].upsamplers[0], fused_decoder.Upsample)
    given = pipeline.vae.decode(latents, return_dict=False)[0]
    assert torch.allclose(given, wanted, atol=1e-4)
    monkeypatch.setattr(fused_decoder, "_MOST_ATTENDED", 10)  # then the layer does it itself
    given = pipeline.vae.decode(latents, return_dict=False)[0]
    assert torch.allclose(given, wanted, atol=1e-4)
    optimisations.apply(optimisations.NONE, pipeline)
    assert list(decoder.modules()) == before
