"""Kernels of others, for Hopper: flash-attn-4's attention and quack-kernels' matrix products.

Each is built at its first use, in two to three seconds, and kept (``QUACK_CACHE_DIR`` and
``FLASH_ATTENTION_CUTE_DSL_CACHE_DIR``). On Hopper only, in 16 bits: for nothing else they were
measured. Each kernel computes a row of a batch as it would alone, in one order.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from worker.models.acceleration import fused
from worker.models.loading.imports import uncompiled

with uncompiled():
    from flash_attn.cute import flash_attn_func
    from quack.epilogue import math as pairs
    from quack.epilogue.frontend import gemm_epilogue
    from quack.epilogue.head_rmsnorm import HeadRstd
    from quack.epilogue.ops import RowVecLoad
    from quack.epilogue.rotary import rotary_cos_sin_load
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


def prove_attention(device: torch.device) -> None:
    """Build and run it; raises whatever it raises where that is impossible."""
    tokens = torch.zeros(1, _NARROW_FROM, 512, dtype=torch.bfloat16, device=device)
    attended(tokens, tokens, tokens, heads=4)
    torch.cuda.synchronize(device)


def prove_products(device: torch.device) -> None:
    """As ``prove_attention``, all of the rest."""
    weights = torch.zeros(1024, 512, dtype=torch.bfloat16, device=device)
    for count, activation in (
        (_NARROW_FROM, "swiglu"),
        (_WIDE_FROM, "swiglu"),
        (_PLAIN_FROM, None),
    ):
        _product(weights.new_zeros(count, 512), weights, activation)
    norm = torch.nn.RMSNorm(128, 1e-5, device=device, dtype=weights.dtype)
    angles = torch.zeros(_PLAIN_FROM, 128, device=device)
    many = weights.new_zeros(_PLAIN_FROM, 512)
    _turned(many, weights, norm.weight.float().repeat(8), norm, angles)
    torch.cuda.synchronize(device)


def ways() -> dict[str, Any]:
    """What ``fused.blocks`` takes in place of its own products."""
    return {"gate": gated, "multiply": multiplied, "projecting": projecting}


def pack_block(block: Any) -> None:
    """For ``ways``."""
    pack(block.feed_forward.w1, block.feed_forward.w3)
    pack_attention(block.attention)


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


def pack_attention(attention: Any) -> None:
    """``pack`` queries, keys and values, and for the first two the norms' weights of all heads."""
    pack(attention.to_q, attention.to_k, attention.to_v)
    norms = [norm.weight.detach().float() for norm in (attention.norm_q, attention.norm_k)]
    attention.norms = torch.cat([weight.repeat(attention.heads) for weight in norms])


def projecting(table: torch.Tensor, rows: int) -> fused.Project:
    """As ``fused.projecting``, of attentions that went through ``pack_attention``. Of many tokens,
    queries and keys are normalised and turned before their product is written."""
    if len(table) * rows < _PLAIN_FROM:
        return functools.partial(_projected, table)
    angles = table.flatten(1).repeat(rows, 1)
    return functools.partial(_projected_turned, angles)


def _projected(
    table: torch.Tensor, attention: Any, inputs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = multiplied(inputs, attention.to_q, attention.to_k, attention.to_v)
    return *fused.turned(query, key, attention, table), value


def _projected_turned(
    angles: torch.Tensor, attention: Any, inputs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    (value,) = multiplied(inputs, attention.to_v)
    weights = attention.to_q.packed[: len(attention.norms)]
    both = _turned(inputs.flatten(0, -2), weights, attention.norms, attention.norm_q, angles)
    query, key = both.view(*inputs.shape[:-1], -1).chunk(2, -1)
    return query, key, value


def _turned(
    rows: torch.Tensor, weights: torch.Tensor, norms: torch.Tensor, norm: Any, angles: torch.Tensor
) -> torch.Tensor:
    """``rows`` × ``weights``, normalised head by head and turned. ``norms``: a weight for each
    column; ``norm``: one head's; ``angles``: each row's cosines and sines, in turns."""
    output = rows.new_empty(len(rows), len(weights))
    _turning(norm.eps).gemm(
        rows,
        weights,
        output,
        epi_args={"angles": angles, "factor": norm.weight, "weight": norms},
        tile_M=192,
        tile_N=128,
        cluster_M=1,
        cluster_N=2,
        pingpong=True,
    )
    return output


@functools.cache
def _turning(eps: float) -> Any:
    """What happens to pairs of a product's columns: normalised head by head, and turned."""

    @gemm_epilogue(
        ops={
            "angles": rotary_cos_sin_load("angles"),
            "factor": HeadRstd("factor", eps=eps),
            "weight": RowVecLoad("weight"),
        },
        prepass=_squares,
        prepass_outs=("factor",),
        mode="acc_pair",
    )
    def turned(acc, angles, factor, weight):  # type: ignore[no-untyped-def]
        first, second = pairs.unpack(acc * factor * weight)
        cosine, sine = pairs.unpack(angles)
        return {"D": pairs.pack(first * cosine - second * sine, first * sine + second * cosine)}

    return turned


def _squares(acc):  # type: ignore[no-untyped-def]
    return {"factor": acc * acc}


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
