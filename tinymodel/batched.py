"""The pipeline's work for many samples of one shape at once, for training and previews.

The library's transformer takes lists and pads and masks each sample for itself; training would
spend most of its time there. This is the same computation through the same modules in tensors.
"""

from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from torch import Tensor
from transformers import Qwen3Model

from tinymodel import configs

_MULTIPLE = 32  # both prompt and image tokens are padded to multiples of it
_PATCH = 2
_PAD_ID = 0


class RealRotaryProcessor:
    """Attention with the rotary embedding in real numbers, which a compiler can fuse."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, S, C); `freqs_cis` are cosines and sines, (1, S, 1, D / 2, 2)."""
        assert attention_mask is None
        assert freqs_cis is not None
        query, key, value = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1))
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = (
            _rotated(normed, freqs_cis).to(value.dtype)
            for normed in (attn.norm_q(query), attn.norm_k(key))
        )
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        out: Tensor = attn.to_out[0](mixed)
        return out


def use_real_rotary(transformer: ZImageTransformer2DModel) -> None:
    """Prepares a transformer for `velocity`."""
    blocks = [*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers]
    for block in blocks:
        block.attention.set_processor(RealRotaryProcessor())


def encode_text(text_encoder: Qwen3Model, tokens: Tensor) -> Tensor:
    """Token ids (B, L), padded with 0 on the right → (B, L, C), what the pipeline hands on.

    No mask: attention is causal, so what stands before the padding does not see it.
    """
    states: Tensor = text_encoder(
        input_ids=tokens, output_hidden_states=True, use_cache=False
    ).hidden_states[-2]
    return states


def velocity(
    transformer: ZImageTransformer2DModel,
    latents: Tensor,
    time: Tensor,
    text: Tensor,
    tokens: Tensor,
) -> Tensor:
    """The transformer's output, picture minus noise, for latents (B, 16, H, W) at times (B,).

    Time runs from 0, pure noise, to 1. `text` (B, L, C) with L a multiple of 32 belongs to
    `tokens` (B, L), whose zeros are padding. Needs `use_real_rotary`.
    """
    count, channels, height, width = latents.shape
    lines, columns = height // _PATCH, width // _PATCH
    name = f"{_PATCH}-1"
    when = transformer.t_embedder(time * transformer.t_scale)
    image_rotary, text_rotary = _rotary(transformer, text.shape[1], lines, columns, latents.device)

    patches = latents.view(count, channels, lines, _PATCH, columns, _PATCH)
    patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(count, lines * columns, -1)
    image = transformer.all_x_embedder[name](patches)
    padding = image_rotary.shape[1] - image.shape[1]
    if padding:
        filler = transformer.x_pad_token.to(image.dtype).expand(count, padding, -1)
        image = torch.cat([image, filler], 1)
    for block in transformer.noise_refiner:
        image = block(image, None, image_rotary, when)

    words = transformer.cap_embedder(text)
    filler = transformer.cap_pad_token.to(words.dtype)
    words = torch.where((tokens == _PAD_ID)[..., None], filler, words)
    for block in transformer.context_refiner:
        words = block(words, None, text_rotary)

    rotary = torch.cat([image_rotary, text_rotary], 1)
    states = torch.cat([image, words], 1)
    for block in transformer.layers:
        states = block(states, None, rotary, when)
    out = transformer.all_final_layer[name](states, c=when)[:, : lines * columns]
    out = out.view(count, lines, columns, _PATCH, _PATCH, channels).permute(0, 5, 1, 3, 2, 4)
    moved: Tensor = out.reshape(latents.shape)
    return moved


@torch.no_grad()
def draw(
    transformer: ZImageTransformer2DModel,
    text_encoder: Qwen3Model,
    vae: AutoencoderKL,
    tokens: Tensor,
    noise: Tensor,
    steps: int = 8,
) -> Tensor:
    """Pictures in 0…1, (B, 3, 8 H, 8 W), from token ids (B, L) and noise (B, 16, H, W)."""
    text = encode_text(text_encoder, tokens)
    evenly = torch.linspace(1, 1 / steps, steps, device=noise.device)
    sigmas = [*shifted(evenly).tolist(), 0.0]
    latents = noise.float()
    for sigma, following in pairwise(sigmas):
        time = torch.full((len(noise),), 1 - sigma, device=noise.device)
        out = velocity(transformer, latents, time, text, tokens).float()
        latents = latents + (sigma - following) * out
    return decode(vae, latents)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Latents (B, 16, H, W) as the transformer makes them → pictures in 0…1, (B, 3, 8 H, 8 W)."""
    decoded: Tensor = vae.decode(latents / configs.LATENT_SCALE + configs.LATENT_MEAN).sample
    return (decoded.float() / 2 + 0.5).clamp(0, 1)


def shifted(sigma: Tensor) -> Tensor:
    """The scheduler's shift of noise levels."""
    return configs.SHIFT * sigma / (1 + (configs.SHIFT - 1) * sigma)


def _rotated(states: Tensor, rotary: Tensor) -> Tensor:
    even, odd = states.float().reshape(*states.shape[:-1], -1, 2).unbind(-1)
    cos, sin = rotary.unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


@lru_cache(maxsize=256)
def _rotary(
    transformer: ZImageTransformer2DModel,
    length: int,
    lines: int,
    columns: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Rotary embeddings of image and text: text counts from 1, the image stands after it."""
    text_ids = torch.zeros(length, 3, dtype=torch.int32)
    text_ids[:, 0] = torch.arange(1, length + 1)
    grid = torch.meshgrid(torch.arange(lines), torch.arange(columns), indexing="ij")
    image_ids = torch.zeros(-(-lines * columns // _MULTIPLE) * _MULTIPLE, 3, dtype=torch.int32)
    image_ids[: lines * columns, 0] = length + 1
    image_ids[: lines * columns, 1:] = torch.stack(grid, -1).flatten(0, 1)
    image, text = (
        torch.view_as_real(transformer.rope_embedder(ids.to(device)))[None, :, None]
        for ids in (image_ids, text_ids)
    )
    return image, text
