"""Two kernels of others, for Hopper: flash-attn-4's attention and quack-kernels' gated product.

Both are built at their first use, in two to three seconds, and kept (``QUACK_CACHE_DIR`` and
``FLASH_ATTENTION_CUTE_DSL_CACHE_DIR``). On Hopper only, in 16 bits: for nothing else they were
measured. Each row of a batch is computed as it would be alone, in one order.
"""

from typing import Any

import torch

from worker.pipelines import fused
from worker.pipelines.imports import uncompiled

with uncompiled():
    from flash_attn.cute import flash_attn_func
    from quack.gemm_config import GemmConfig
    from quack.gemm_interface import gemm_gated

_WIDE = GemmConfig(
    tile_m=256, tile_n=192, pingpong=False, is_dynamic_persistent=False, device_capacity=9
)
_NARROW = GemmConfig(
    tile_m=128, tile_n=192, pingpong=True, is_dynamic_persistent=False, device_capacity=9
)
_WIDE_FROM = 8192
"""Tokens of all rows. Of seven tilings these two were the quickest (``docs/performance.md``)."""
_NARROW_FROM = 1200
"""With fewer tokens, ``fused.gated`` is as quick."""


def prove(device: torch.device) -> None:
    """Build and run both; raises whatever they raise where that is impossible."""
    tokens = torch.zeros(1, _NARROW_FROM, 512, dtype=torch.bfloat16, device=device)
    attended(tokens, tokens, tokens, heads=4)
    for count in (_NARROW_FROM, _WIDE_FROM):
        _product(tokens.new_zeros(count, 512), tokens.new_zeros(1024, 512))
    torch.cuda.synchronize(device)


def attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int
) -> torch.Tensor:
    """As ``fused.attended``: rows × tokens × width each."""
    shape = (*query.shape[:2], heads, -1)
    output = flash_attn_func(*(each.view(shape) for each in (query, key, value)))
    # With the sums of its softmax beside it, in some releases.
    output = output[0] if isinstance(output, tuple) else output
    attended: torch.Tensor = output.flatten(2)
    return attended


def pack(feed: Any) -> None:
    """Lay the weights of a feed-forward's two first layers into one tensor, which they share."""
    packed = torch.cat([feed.w1.weight, feed.w3.weight]).detach()
    feed.w1.weight.data, feed.w3.weight.data = packed.chunk(2)
    feed.packed = packed


def gated(feed: Any, inputs: torch.Tensor) -> torch.Tensor:
    """As ``fused.gated``, of a feed-forward that went through ``pack``."""
    rows = inputs.flatten(0, -2)
    if len(rows) < _NARROW_FROM:
        return fused.gated(feed, inputs)
    return _product(rows, feed.packed).view(*inputs.shape[:-1], -1)


def _product(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """silu(``rows`` × the first half of ``weights``) times ``rows`` × the second half."""
    _, output = gemm_gated(
        rows,
        weights.t(),
        activation="swiglu",
        store_preact=False,
        config=_WIDE if len(rows) >= _WIDE_FROM else _NARROW,
        concat_layout=("B",),
    )
    product: torch.Tensor = output
    return product
