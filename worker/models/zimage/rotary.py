"""Rotary position embedding in real arithmetic.

diffusers multiplies complex numbers, in kernels of their own. The products and sums are the same.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]


def attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int
) -> torch.Tensor:
    """rows × tokens × width each, and so is what it gives."""
    shape = (*query.shape[:2], heads, -1)
    query, key, value = (each.view(shape).transpose(1, 2) for each in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class RealRotaryProcessor:
    """In the place of diffusers' ``ZSingleStreamAttnProcessor``.

    ``freqs_cis`` is diffusers' complex table or a real one from ``real_table``; it may lack the
    leading dimension of rows. ``attend``: what computes as ``attended`` does; it takes no mask.
    """

    def __init__(self, attend: Attend | None = None) -> None:
        self._attend = attend

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
        output = self._attended(query, key, value, attention_mask).to(query.dtype)
        for layer in attn.to_out:  # a projection, and a dropout where there is one
            output = layer(output)
        return output

    def _attended(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """rows × tokens × heads × head size each, to rows × tokens × width."""
        if self._attend is not None:
            assert mask is None, "rows of one length need no mask"
            heads = query.shape[2]
            return self._attend(query.flatten(2), key.flatten(2), value.flatten(2), heads)
        if mask is not None and mask.ndim == 2:
            mask = mask[:, None, None, :]
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2, 3)


def real_table(freqs_cis: torch.Tensor) -> torch.Tensor:
    """… × tokens × half of a head × (cosine, sine), from diffusers' complex one."""
    return torch.view_as_real(freqs_cis) if freqs_cis.is_complex() else freqs_cis


def rotated(vectors: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """``vectors`` (rows × tokens × heads × head size), each pair turned by its angle, in fp32."""
    cosine, sine = table.unsqueeze(-3).unbind(-1)
    even, odd = vectors.float().reshape(*vectors.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1)
    return turned.flatten(-2).type_as(vectors)
