"""From latents to pixels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from worker.models.acceleration.graphs import MOST_PIXELS, Graphs
from worker.models.zimage.tiles import TiledDecoder
from worker.types import Pixels

_PIXELS_PER_CELL = 64
_SIDES = (2048, 1536, 1024, 768, 512)  # of parts, without their margins
_WIDEST = 3
"""So many of its widest layers' pictures are there together at the worst moment of decoding: 2.75
with Z-Image-Turbo's sizes, from 1024² to 4096²."""


class PictureDecoder:
    """Decodes one picture at a time: the peak of memory does not grow with the batch, and the
    pixels do not depend on it. ``graphs``: None where there are none to use. ``room_bytes``: what
    decoding may take now; a picture for which that is too little is decoded in parts."""

    def __init__(
        self,
        pipeline: Any,
        graphs: Graphs | None = None,
        room_bytes: Callable[[], int] | None = None,
    ) -> None:
        self._vae = pipeline.vae
        self._tiled = TiledDecoder(pipeline.vae.decoder)
        self._room_bytes = room_bytes
        self._processor = pipeline.image_processor
        self._graphs = graphs

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """``latents``: channels × height / 8 × width / 8, fp32. The picture, height × width × 3, is
        on its way to the CPU and may not be finished yet: ``taken`` waits for it."""
        cells = latents.shape[1] * latents.shape[2]
        if self._graphs is None or cells * _PIXELS_PER_CELL > MOST_PIXELS:
            picture = self._decoded(latents)
        else:
            picture = self._graphs(("decode", tuple(latents.shape)), self._decoded, latents)
        return picture.to("cpu", non_blocking=True)  # into pinned memory, beside the next one

    def taken(
        self, pictures: Sequence[torch.Tensor], latents: Sequence[torch.Tensor]
    ) -> list[Pixels]:
        """What ``__call__`` made of ``latents``, on the CPU; FloatingPointError for bad latents."""
        finite = torch.stack([each.isfinite().all() for each in latents])
        if not finite.all():  # would be a black picture
            raise FloatingPointError(f"latents are not finite in {self._vae.dtype}; use bfloat16")
        # The copies were asked for before the answer that was just waited for.
        return [picture.numpy() for picture in pictures]

    def _part_side(self, pixels: int) -> int | None:
        """Of parts, in pixels; None: the whole picture fits."""
        if self._room_bytes is None or pixels <= MOST_PIXELS:
            return None
        room_pixels = self._room_bytes() // bytes_per_pixel(self._vae)
        if pixels <= room_pixels:
            return None
        return next((side for side in _SIDES if side * side <= room_pixels // 2), _SIDES[-1])

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """height × width × 3, 8 bits a value."""
        vae = self._vae
        latents = latents[None].to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        side = self._part_side(latents.shape[2] * latents.shape[3] * _PIXELS_PER_CELL)
        if side is None:
            image = vae.decode(latents, return_dict=False)[0]
        else:
            image = self._tiled(latents, side)
        image = self._processor.postprocess(image, output_type="pt")[0]
        pixels: torch.Tensor = (image.float() * 255).round().to(torch.uint8).permute(1, 2, 0)
        return pixels.contiguous()


def bytes_per_pixel(vae: Any) -> int:
    """What decoding takes for each at its worst moment: in the last block, before it narrows."""
    channels: int = vae.config.block_out_channels[1]
    size: int = vae.dtype.itemsize
    return _WIDEST * channels * size
