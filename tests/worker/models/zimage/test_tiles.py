"""Decoding in parts, with the shipped model's decoder."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from tests.worker.models.conftest import KERNEL_DEVICE, needs_triton
from worker.models.loading.sources import TINY
from worker.models.zimage.decoder import PictureDecoder, bytes_per_pixel
from worker.models.zimage.tiles import TiledDecoder


@pytest.fixture(scope="module")
def vae() -> Any:
    return AutoencoderKL.from_pretrained(TINY / "vae").eval()


def uneven(height: int, width: int) -> torch.Tensor:
    """Latents that differ much from place to place, as those of pictures do."""
    torch.manual_seed(3)
    slope = torch.linspace(-2, 2, width)[None, None, None] * torch.randn(1, 16, 1, 1)
    return torch.randn(1, 16, height, width) + slope


def pixels(image: torch.Tensor) -> torch.Tensor:
    return (image / 2 + 0.5).clamp(0, 1) * 255


@pytest.mark.parametrize(("height", "width", "side"), [(32, 32, 128), (20, 45, 128), (16, 16, 64)])
@torch.no_grad()
def test_parts_make_the_whole_picture(vae: Any, height: int, width: int, side: int) -> None:
    """Hundreds of times closer than two of 255, seams included."""
    latents = uneven(height, width)
    whole = vae.decoder(latents)
    parts = TiledDecoder(vae.decoder)(latents, side)
    assert (pixels(parts) - pixels(whole)).abs().max() < 0.01
    assert torch.equal(vae.decoder(latents), whole)


@needs_triton
@torch.no_grad()
def test_parts_make_the_whole_picture_with_our_kernels(vae: Any) -> None:
    from worker.models.acceleration import fused_decoder

    decoder = copy.deepcopy(vae.decoder).to(KERNEL_DEVICE)
    latents = uneven(24, 16).to(KERNEL_DEVICE)
    fused_decoder.install(decoder)
    whole = decoder(latents)
    parts = TiledDecoder(decoder)(latents, 64)
    assert (pixels(parts) - pixels(whole)).abs().max() < 0.05


@torch.no_grad()
def test_each_part_by_itself_would_be_another_picture(vae: Any) -> None:
    """Else the comparison above would prove nothing."""
    latents = uneven(64, 64)
    corner = vae.decoder(latents[:, :, :40, :40])[:, :, :256, :256]
    off = (pixels(corner) - pixels(vae.decoder(latents))[:, :, :256, :256]).abs().mean()
    assert off > 0.5


@pytest.mark.parametrize(
    ("room_pixels", "side"),
    [(1536 * 1024 + 1, None), (1536 * 1024 - 1, 768), (1 << 20, 512), (1 << 19, 512), (10, 512)],
)
def test_parts_are_as_large_as_fit(small_zimage: Any, room_pixels: int, side: int | None) -> None:
    room = room_pixels * bytes_per_pixel(small_zimage.vae)
    decode = PictureDecoder(small_zimage, room_bytes=lambda: room)
    assert decode._part_side(1024 * 1024) is None
    assert decode._part_side(1536 * 1024) == side


@torch.no_grad()
def test_only_what_does_not_fit_is_decoded_in_parts(
    small_zimage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.models.zimage.decoder.MOST_PIXELS", 512 * 512)
    room = 512 * 512 * bytes_per_pixel(small_zimage.vae)
    sides: list[int] = []
    decode = PictureDecoder(small_zimage, room_bytes=lambda: room)
    monkeypatch.setattr(decode, "_tiled", _noting(decode._tiled, sides))
    assert decode(torch.zeros(16, 64, 64)).shape == (512, 512, 3)
    assert sides == []
    assert decode(torch.zeros(16, 80, 64)).shape == (640, 512, 3)
    assert sides == [512]


def _noting(tiled: Any, sides: list[int]) -> Callable[..., torch.Tensor]:
    def noted(latents: torch.Tensor, side: int) -> torch.Tensor:
        sides.append(side)
        result: torch.Tensor = tiled(latents, side)
        return result

    return noted
