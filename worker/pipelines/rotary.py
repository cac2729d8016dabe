"""Rotary position embedding in real arithmetic.

diffusers multiplies complex numbers, in kernels of their own. The products and sums are the same.
"""

from typing import Any

import torch
import torch.nn.functional as F


class RealRotaryProcessor:
    """In the place of diffusers' ``ZSingleStreamAttnProcessor``.

    ``freqs_cis`` is diffusers' complex table or a real one from ``real_table``; it may lack the
    leading dimension of rows.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        freqs_cis: torch.Tensor | None = None,
    ) -> torch.Tensor:
        query, key, value = (
            project(hidden_states).unflatten(-1, (attn.heads, -1))
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        if freqs_cis is not None:
            table = real_table(freqs_cis)
            query, key = rotated(query, table), rotated(key, table)
        if attention_mask is not None and attention_mask.ndim == 2:
            attention_mask = attention_mask[:, None, None, :]
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, attention_mask)
        output: torch.Tensor = attended.transpose(1, 2).flatten(2, 3).to(query.dtype)
        for layer in attn.to_out:  # a projection, and a dropout where there is one
            output = layer(output)
        return output


def real_table(freqs_cis: torch.Tensor) -> torch.Tensor:
    """… × tokens × half of a head × (cosine, sine), from diffusers' complex one."""
    return torch.view_as_real(freqs_cis) if freqs_cis.is_complex() else freqs_cis


def rotated(vectors: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """``vectors`` (rows × tokens × heads × head size), each pair turned by its angle, in fp32."""
    cosine, sine = table.unsqueeze(-3).unbind(-1)
    even, odd = vectors.float().reshape(*vectors.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1)
    return turned.flatten(-2).type_as(vectors)
