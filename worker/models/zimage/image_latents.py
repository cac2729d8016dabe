"""From pixels to latents: pictures that a drawing goes on from, and what of them stays.

As ``ZImageImg2ImgPipeline`` and ``ZImageInpaintPipeline`` do it, sample by sample. The noise is
fp32 from a CPU generator, as that of every drawing is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from worker.models.acceleration.graphs import MOST_PIXELS
from worker.models.zimage.decoder import bytes_per_pixel
from worker.types import Mask, Pixels

_CELL = 8  # pixels to a side of a latent
_HALF = 128  # of 255: from there on a cell is drawn anew


@dataclass(frozen=True, eq=False)
class Encoded:
    """What the encoder says of a picture: a distribution, from which each seed takes its own
    latents. 1 × channels × height / 8 × width / 8 each, fp32, on the device."""

    mean: torch.Tensor
    deviation: torch.Tensor


@dataclass(frozen=True, eq=False)
class Kept:
    """What of a sample stays: where ``drawn`` (height / 8 × width / 8) is False, its latents are
    those of the ``image``, with as much of its own ``noise`` as belongs to the step."""

    image: torch.Tensor
    noise: torch.Tensor
    drawn: torch.Tensor

    def blended(self, latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """``latents`` at noise level ``sigma`` with what stays put in."""
        return torch.where(self.drawn, latents, noised(self.image, self.noise, sigma))


class ImageEncoder:
    """Encodes one picture at a time: the peak of memory does not grow with the batch, and the
    latents do not depend on it. ``room_bytes``: what encoding may take now; a picture for which
    that is too little is encoded in parts, by the autoencoder's own tiling, which is close."""

    def __init__(self, vae: Any, room_bytes: Callable[[], int] | None = None) -> None:
        self._vae = vae
        self._room_bytes = room_bytes

    def __call__(self, pixels: Pixels) -> Encoded:
        values = torch.from_numpy(pixels.copy()).to(self._vae.device)
        image = values.permute(2, 0, 1)[None].float() / 255
        image = (2 * image - 1).to(self._vae.dtype)
        before, self._vae.use_tiling = self._vae.use_tiling, self._too_large(image)
        try:
            found = self._vae.encode(image).latent_dist
        finally:
            self._vae.use_tiling = before
        return Encoded(found.mean.float(), found.std.float())

    def _too_large(self, image: torch.Tensor) -> bool:
        pixels = image.shape[2] * image.shape[3]
        if self._room_bytes is None or pixels <= MOST_PIXELS:
            return False
        # An encoder is as wide at full size as half of a decoder; twice its need is spare.
        return pixels * bytes_per_pixel(self._vae) > self._room_bytes()

    def latents(self, encoded: Encoded, seed: torch.Generator) -> torch.Tensor:
        """channels × height / 8 × width / 8, fp32; takes from ``seed`` what comes before noise."""
        mean, config = encoded.mean, self._vae.config
        chance = torch.randn(mean.shape, generator=seed, dtype=torch.float32)
        sample = mean + encoded.deviation * chance.to(mean.device)
        latents: torch.Tensor = (sample - config.shift_factor) * config.scaling_factor
        return latents[0]


def noised(image: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """``image`` at noise level ``sigma``, from 1 (nothing but noise) down to 0."""
    return sigma * noise + (1.0 - sigma) * image


def cells_drawn(mask: Mask, device: torch.device) -> torch.Tensor:
    """Which latents a mask gives away, by the first pixel of each, as diffusers does it."""
    return torch.from_numpy(mask[::_CELL, ::_CELL] >= _HALF).to(device)
