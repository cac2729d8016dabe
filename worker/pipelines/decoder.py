"""From latents to pixels."""

from collections.abc import Sequence
from typing import Any

import torch

from worker.pipelines.base import Pixels
from worker.pipelines.graphs import MOST_PIXELS, Graphs

_PIXELS_PER_CELL = 64
_FLASH_HEAD_SIZE = 256  # no flash kernel takes wider heads
_MOST_SCORES = 1 << 26  # of one part of the attention: 256 MiB


class PictureDecoder:
    """Decodes one picture at a time: the peak of memory does not grow with the batch, and the
    pixels do not depend on it. ``graphs``: None where there are none to use."""

    def __init__(self, pipeline: Any, graphs: Graphs | None = None) -> None:
        self._vae = pipeline.vae
        self._processor = pipeline.image_processor
        self._graphs = graphs

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """``latents``: channels × height / 8 × width / 8, fp32. The picture, height × width × 3, is
        on the device, and may not be finished yet: ``taken`` waits for it."""
        cells = latents.shape[1] * latents.shape[2]
        if self._graphs is None or cells * _PIXELS_PER_CELL > MOST_PIXELS:
            return self._decoded(latents)
        return self._graphs(("decode", tuple(latents.shape)), self._decoded, latents)

    def taken(
        self, pictures: Sequence[torch.Tensor], latents: Sequence[torch.Tensor]
    ) -> list[Pixels]:
        """What ``__call__`` made of ``latents``, on the CPU; FloatingPointError for bad latents."""
        finite = torch.stack([each.isfinite().all() for each in latents])
        if not finite.all():  # would be a black picture
            raise FloatingPointError(f"latents are not finite in {self._vae.dtype}; use bfloat16")
        return [picture.cpu().numpy() for picture in pictures]

    def rough(self, latents: torch.Tensor) -> Pixels:
        """The same for latents of any odd size: nothing is compiled nor recorded for it."""
        with torch.compiler.set_stance("force_eager"):
            pixels: Pixels = self._decoded(latents).cpu().numpy()
        return pixels

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """height × width × 3, 8 bits a value."""
        vae = self._vae
        latents = latents[None].to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        image = vae.decode(latents, return_dict=False)[0]
        image = self._processor.postprocess(image, output_type="pt")[0]
        pixels: torch.Tensor = (image.float() * 255).round().to(torch.uint8).permute(1, 2, 0)
        return pixels.contiguous()


class LastNorm(torch.nn.Module):
    """Around a group norm: the compiler passes over a module that is torch's own."""

    def __init__(self, norm: torch.nn.GroupNorm) -> None:
        super().__init__()
        self.replaced = norm

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.replaced(image)
        return normed


class WideHeadProcessor:
    """Attention of the decoder, whose single head is too wide for flash attention, by two plain
    matrix products; in the place of diffusers' ``AttnProcessor2_0``.

    What torch falls back to for such a head does not use Hopper's matrix units.
    """

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, temb: None = None, **_: Any
    ) -> torch.Tensor:
        """``hidden_states``: 1 × channels × height × width."""
        cells = hidden_states.flatten(2).transpose(1, 2)
        normed = attn.group_norm(cells.transpose(1, 2)).transpose(1, 2)
        query, key, value = (project(normed) for project in (attn.to_q, attn.to_k, attn.to_v))
        attended = wide_attention(query, key, value)
        output: torch.Tensor = attn.to_out[0](attended).transpose(1, 2).view_as(hidden_states)
        return output + hidden_states


def wide_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention of one head; each 1 × tokens × width. On CUDA scores are in fp32."""
    rows = max(1, _MOST_SCORES // key.shape[1])
    return torch.cat([_attended(part, key, value) for part in torch.split(query, rows, 1)], 1)


def _attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    keys = key.transpose(1, 2)
    wide = torch.bmm(query, keys, torch.float32) if query.is_cuda else torch.bmm(query, keys)
    weights = wide.mul_(query.shape[-1] ** -0.5).softmax(-1)
    return torch.bmm(weights.to(value.dtype), value)


def needs_wide_heads(vae: Any) -> bool:
    """Whether ``WideHeadProcessor`` computes what the attention of ``vae``'s decoder does, for
    which no flash kernel exists."""
    return all(
        attn.heads == 1
        and attn.inner_dim > _FLASH_HEAD_SIZE
        and attn.residual_connection
        and attn.rescale_output_factor == 1
        and attn.group_norm is not None
        and attn.spatial_norm is attn.norm_q is attn.norm_k is None
        for attn in attentions(vae)
    )


def attentions(vae: Any) -> list[Any]:
    """The decoder's attention layers."""
    return [attn for attn in vae.decoder.mid_block.attentions if attn is not None]
