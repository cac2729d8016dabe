"""Kernels of others, for Hopper: flash-attn-4's attention and quack-kernels' matrix products.

Each is built at its first use, in two to three seconds, and kept (``QUACK_CACHE_DIR`` and
``FLASH_ATTENTION_CUTE_DSL_CACHE_DIR``). On Hopper only, in 16 bits: for nothing else they were
measured. Each kernel computes a row of a batch as it would alone, in one order.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from worker.pipelines import fused
from worker.pipelines.imports import uncompiled

with uncompiled():
    from flash_attn.cute import flash_attn_func
    from quack.gemm_config import GemmConfig
    from quack.gemm_interface import gemm_act

_WIDE = GemmConfig(
    tile_m=256,
    tile_n=192,
    cluster_m=1,
    cluster_n=2,
    pingpong=False,
    is_dynamic_persistent=False,
    device_capacity=9,
)
_NARROW = GemmConfig(
    tile_m=128, tile_n=192, pingpong=True, is_dynamic_persistent=False, device_capacity=9
)
_WIDE_FROM = 4096
"""Tokens of all rows. These two tilings were the quickest of eight (``docs/performance.md``)."""
_NARROW_FROM = 1200
"""With fewer tokens, ``fused.gated`` is as quick."""
_PLAIN_FROM = 8192
"""With fewer tokens, cuBLAS is quicker where nothing is gated."""


def prove(device: torch.device) -> None:
    """Build and run all; raises whatever they raise where that is impossible."""
    tokens = torch.zeros(1, _NARROW_FROM, 512, dtype=torch.bfloat16, device=device)
    attended(tokens, tokens, tokens, heads=4)
    weights = tokens.new_zeros(1024, 512)
    for count, activation in (
        (_NARROW_FROM, "swiglu"),
        (_WIDE_FROM, "swiglu"),
        (_PLAIN_FROM, None),
    ):
        _product(tokens.new_zeros(count, 512), weights, activation)
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


def pack(*layers: Any) -> None:
    """Lay the weights of layers with the same inputs into one tensor, which they share."""
    packed = torch.cat([layer.weight for layer in layers]).detach()
    for layer, part in zip(layers, _parts(packed, layers, 0), strict=True):
        layer.weight.data = part
    layers[0].packed = packed


def multiplied(inputs: torch.Tensor, *layers: Any) -> Sequence[torch.Tensor]:
    """As ``fused.products``, of one layer or of all that went through ``pack`` together; theirs are
    parts of one tensor."""
    rows = inputs.flatten(0, -2)
    weights = layers[0].packed if len(layers) > 1 else layers[0].weight
    product = _product(rows, weights) if len(rows) >= _PLAIN_FROM else F.linear(rows, weights)
    return _parts(product.view(*inputs.shape[:-1], -1), layers, -1)


def _parts(whole: torch.Tensor, layers: Sequence[Any], dimension: int) -> Sequence[torch.Tensor]:
    """Each layer's, of what has the outputs of all one after another."""
    return torch.split(whole, [len(layer.weight) for layer in layers], dimension)


def gated(feed: Any, inputs: torch.Tensor) -> torch.Tensor:
    """As ``fused.gated``, of a feed-forward whose first layers went through ``pack``."""
    rows = inputs.flatten(0, -2)
    if len(rows) < _NARROW_FROM:
        return fused.gated(feed, inputs)
    return _product(rows, feed.w1.packed, "swiglu").view(*inputs.shape[:-1], -1)


def _product(
    rows: torch.Tensor, weights: torch.Tensor, activation: str | None = None
) -> torch.Tensor:
    """``rows`` × ``weights``; with "swiglu", silu of its first half times the second."""
    _, output = gemm_act(
        rows,
        weights.t(),
        activation=activation,
        store_preact=False,
        config=_WIDE if len(rows) >= _WIDE_FROM else _NARROW,
        concat_layout=("B",) if activation else None,
    )
    product: torch.Tensor = output
    return product
