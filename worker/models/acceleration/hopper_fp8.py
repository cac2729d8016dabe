"""A block in 8 bits on Hopper: quack-kernels' products, and norms that write 8 bits themselves.

quack multiplies by the scales of tokens and of weights before a product is written, and gates a
feed-forward inside it; what cuBLAS is quicker with is left to it (``docs/performance.md``). Every
kernel computes a row of a batch as it would alone, in one order.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from worker.models.acceleration import fused
from worker.models.acceleration.fused import Narrow
from worker.models.loading.imports import uncompiled

with uncompiled():
    from quack.activation import swiglu
    from quack.epilogue import math as pairs
    from quack.epilogue.frontend import gemm_epilogue
    from quack.epilogue.ops import ColVecLoad, RowVecLoad

_FP8 = torch.float8_e4m3fn
_QUACK_FROM = 512
"""Tokens of all rows; with fewer, cuBLAS and a kernel of ours that gates are quicker."""
_PLAIN_TILE = {"tile_M": 128, "tile_N": 192}
_GATED_TILE = {"tile_M": 192, "tile_N": 128}
_HOW = {"cluster_M": 1, "cluster_N": 2, "pingpong": True}
_FAST = (("fp8_slow_accum", False),)  # sums as cuBLAS's do with use_fast_accum


class Packed(NamedTuple):
    """Weights of layers with the same inputs, one layer after the other."""

    values: torch.Tensor  # outputs × inputs, in 8 bits
    scales: torch.Tensor  # of the outputs
    pairs: torch.Tensor  # the same, of the first half and the second in turns


@gemm_epilogue(ops={"factors": ColVecLoad("factors"), "scales": RowVecLoad("scales")})
def _scaled(acc, factors, scales):  # type: ignore[no-untyped-def]
    return {"D": acc * factors * scales}


@gemm_epilogue(
    outputs=("gated",),
    ops={"factors": ColVecLoad("factors"), "scales": RowVecLoad("scales")},
    mode="acc_pair",
)
def _scaled_gated(acc, factors, scales):  # type: ignore[no-untyped-def]
    gate, value = pairs.unpack(acc * factors * scales)
    return {"gated": swiglu(gate, value)}


def prove_products(device: torch.device) -> None:
    """Build and run them; raises whatever they raise where that is impossible."""
    values = torch.zeros(1024, 512, dtype=_FP8, device=device)
    scales = torch.ones(1024, device=device)
    rows = Narrow(values[None, :_QUACK_FROM], scales[:_QUACK_FROM])
    for product in (_product, _gated_product):
        product(rows, Packed(values, scales, scales))
    torch.cuda.synchronize(device)


def ways() -> dict[str, Any]:
    """What ``fused.blocks`` takes in place of its own products and norms."""
    return {
        "gate": gated,
        "multiply": multiplied,
        "norm": functools.partial(fused.normalised, narrow=True),
        "projecting": projecting,
    }


def pack_block(block: Any) -> None:
    """For ``ways``: lay 8-bit weights of layers that have the same inputs into one tensor, which
    they share."""
    attention, feed = block.attention, block.feed_forward
    _pack(attention.to_q, attention.to_k, attention.to_v)
    _pack(feed.w1, feed.w3)
    _pack(attention.to_out[0])
    _pack(feed.w2)


def _pack(*layers: Any) -> None:
    if any(layer.bias is not None for layer in layers):
        raise ValueError("a layer with a bias cannot be packed")
    values, scales = layers[0].weight, layers[0].scale
    if len(layers) > 1:
        values = torch.cat([layer.weight.view(torch.uint8) for layer in layers]).view(_FP8)
        scales = torch.cat([layer.scale for layer in layers])
        parts = torch.split(values, [len(layer.weight) for layer in layers])
        for layer, part in zip(layers, parts, strict=True):
            layer.weight = part
    scales = scales.flatten().contiguous()
    in_turns = torch.stack(scales.chunk(2), 1).flatten()
    layers[0].packed = Packed(values, scales, in_turns)


def multiplied(inputs: torch.Tensor | Narrow, layer: Any) -> Sequence[torch.Tensor]:
    """As ``fused.products``, of one layer that went through ``pack_block``."""
    return [_product(_narrow(inputs), layer.packed)]


def projecting(table: torch.Tensor, rows: int) -> fused.Project:
    """As ``fused.projecting``, of attentions that went through ``pack_block``."""

    def project(attention: Any, inputs: Narrow) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value = _product(inputs, attention.to_q.packed).chunk(3, -1)
        return *fused.turned(query, key, attention, table), value

    return project


def gated(feed: Any, inputs: Narrow) -> fused.Normed:
    """As ``fused.gated``, of a feed-forward that went through ``pack_block``."""
    if len(inputs.factors) < _QUACK_FROM:
        return fused.gated_narrow(_product(inputs, feed.w1.packed))
    return _gated_product(inputs, feed.w1.packed)


def _narrow(inputs: torch.Tensor | Narrow) -> Narrow:
    if isinstance(inputs, Narrow):
        return inputs
    values, factors = fused.quantized(inputs.flatten(0, -2))
    return Narrow(values.view(inputs.shape), factors.flatten())


def _product(inputs: Narrow, weights: Packed) -> torch.Tensor:
    """rows × tokens × outputs, in 16 bits."""
    rows, factors = inputs.values.flatten(0, -2), inputs.factors
    if len(rows) < _QUACK_FROM:
        output: torch.Tensor = torch._scaled_mm(
            rows,
            weights.values.t(),
            scale_a=factors[:, None],
            scale_b=weights.scales[None],
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
    else:
        output = rows.new_empty(len(rows), len(weights.values), dtype=torch.bfloat16)
        scaling = {"factors": factors, "scales": weights.scales}
        _scaled.gemm(
            rows,
            weights.values,
            output,
            epi_args=scaling,
            **_PLAIN_TILE,
            **_HOW,
            post_init_attrs=_FAST,
        )
    return output.view(*inputs.values.shape[:-1], -1)


def _gated_product(inputs: Narrow, weights: Packed) -> torch.Tensor:
    """silu of the first half of the product's outputs times the second."""
    rows = inputs.values.flatten(0, -2)
    output = rows.new_empty(len(rows), len(weights.values) // 2, dtype=torch.bfloat16)
    _scaled_gated.gemm(
        rows,
        weights.values,
        None,
        epi_args={"gated": output, "factors": inputs.factors, "scales": weights.pairs},
        concat_layout=("B",),
        **_GATED_TILE,
        **_HOW,
        post_init_attrs=_FAST,
    )
    return output.view(*inputs.values.shape[:-1], -1)
