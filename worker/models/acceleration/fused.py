"""Kernels of ours, in Triton, for what stands between Z-Image's matrix products and convolutions.

A compiler can fuse it too, but takes ten seconds of every start and makes a step of 94.6 ms where
these make one of 92.8. They take any size, sum in fp32, and run in one order: the same bytes each
time. On a GPU only, or in Triton's interpreter (``TRITON_INTERPRET=1``). ``do_not_specialize``:
what changes with the size of a picture must not make Triton compile again.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from worker.models.acceleration.fp8 import Fp8Linear
from worker.models.zimage.rotary import Attend, attended

_TILE = 4096  # values of one program
_LARGEST = tl.constexpr(448.0)  # in 8 bits


class By(NamedTuple):
    """A norm, and the part of a block's changes (rows × four widths, or None) that goes with it."""

    norm: Any
    changes: torch.Tensor | None = None
    part: int = 0


class Narrow(NamedTuple):
    """In 8 bits: ``values``, rows × tokens × width, and what to multiply each token with."""

    values: torch.Tensor
    factors: torch.Tensor  # rows · tokens, fp32


Normed = torch.Tensor | Narrow
Gate = Callable[[Any, Any], Normed]
Multiply = Callable[..., Sequence[torch.Tensor]]
Normalise = Callable[..., tuple[torch.Tensor, Normed]]
Project = Callable[[Any, Any], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def prove(device: torch.device) -> None:
    """Build and run one kernel; raises what Triton raises where that is impossible."""
    numbers = torch.ones(1, 16, device=device)
    _silu_times(numbers, numbers)


def products(inputs: torch.Tensor, *layers: Any) -> list[torch.Tensor]:
    """What each layer makes of ``inputs``, which 8-bit layers bring to 8 bits only once."""
    if not all(isinstance(layer, Fp8Linear) and layer.multiplies for layer in layers):
        return [layer(inputs) for layer in layers]
    rows = quantized(inputs.flatten(0, -2))
    return [_hooked(layer, inputs, layer.product(*rows, inputs)) for layer in layers]


def _hooked(layer: Fp8Linear, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """``output`` with what hooks of a layer make of it that is not called itself: adapters."""
    for hook in layer._forward_hooks.values():
        output = hook(layer, (inputs,), output)
    return output


def projecting(table: torch.Tensor, rows: int) -> Project:
    """What makes an attention's query, key and value of its inputs, ``rows`` × tokens × width, the
    first two normalised and turned by ``table``."""

    def project(
        attention: Any, inputs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value = products(inputs, attention.to_q, attention.to_k, attention.to_v)
        return *turned(query, key, attention, table), value

    return project


def gated(feed: Any, inputs: torch.Tensor) -> torch.Tensor:
    """What a feed-forward's last layer is given for ``inputs``, rows × tokens × width."""
    return _silu_times(*products(inputs, feed.w1, feed.w3))


def normalised(
    inputs: torch.Tensor,
    scale: By,
    gate: By | None = None,
    base: torch.Tensor | None = None,
    narrow: bool = False,
) -> tuple[torch.Tensor, Normed]:
    """A sum, and that normalised, times one more than the part of the changes; ``narrow``: as
    ``Narrow``. The sum is ``inputs``; or ``base`` and normalised ``inputs``, times the tanh of the
    part of the changes of ``gate``."""
    output = torch.empty_like(inputs, dtype=torch.float8_e4m3fn if narrow else None)
    factors = inputs.new_empty(output[..., 0].numel(), dtype=torch.float32) if narrow else None
    total = inputs if base is None else torch.empty_like(inputs)
    _launch_norm(
        inputs,
        gate or scale,
        scale,
        base=base,
        total=None if base is None else total,
        output=output,
        factors=factors,
    )
    return total, output if factors is None else Narrow(output, factors)


def blocks(
    layers: Sequence[Any],
    tokens: torch.Tensor,
    table: torch.Tensor,
    time: torch.Tensor | None,
    *,
    attend: Attend = attended,
    gate: Gate = gated,
    multiply: Multiply = products,
    norm: Normalise = normalised,
    projecting: Callable[[torch.Tensor, int], Project] = projecting,
) -> torch.Tensor:
    """``ZImageTransformerBlock``s one after another: rows × tokens × width. ``table``: tokens ×
    half of a head × (cosine, sine); ``time``: None for blocks without modulation. ``attend``,
    ``gate``, ``multiply``, ``norm`` and ``projecting``: what computes as ``attended``, ``gated``,
    ``products``, ``normalised`` and ``projecting`` do; what ``norm`` and ``gate`` give may be
    ``Narrow`` where the others take that."""
    project = projecting(table, len(tokens))
    entry = _entry(layers[0], time)
    _, normed = norm(tokens, entry)
    for layer, following in itertools.zip_longest(layers, layers[1:]):
        attention, changes = layer.attention, entry.changes
        seen = attend(*project(attention, normed), attention.heads)
        (seen,) = multiply(seen, attention.to_out[0])
        gated, scaled = By(layer.attention_norm2, changes, 1), By(layer.ffn_norm1, changes, 2)
        tokens, normed = norm(seen, scaled, gated, tokens)
        (fed,) = multiply(gate(layer.feed_forward, normed), layer.feed_forward.w2)
        gated = By(layer.ffn_norm2, changes, 3)
        if following is None:
            tokens = _added(tokens, fed, gated)
        else:  # what changes it only now: all at once, the GPU would wait for the first block
            entry = _entry(following, time)
            tokens, normed = norm(fed, entry, gated, tokens)
    return tokens


def _entry(layer: Any, time: torch.Tensor | None) -> By:
    """A block's first norm."""
    return By(layer.attention_norm1, None if time is None else layer.adaLN_modulation(time))


def _added(tokens: torch.Tensor, more: torch.Tensor, gate: By) -> torch.Tensor:
    """``tokens`` and normalised ``more``, times the tanh of the part of the changes."""
    total = torch.empty_like(tokens)
    _launch_norm(more, gate, gate, base=tokens, total=total)
    return total


def _launch_norm(
    inputs: torch.Tensor,
    gate: By,
    scale: By,
    *,
    base: torch.Tensor | None = None,
    total: torch.Tensor | None = None,
    output: torch.Tensor | None = None,
    factors: torch.Tensor | None = None,
) -> None:
    """``base``: what to add to, ``total``: where to write the sum, ``output``: where to write what
    is scaled, each if that is wanted; ``factors``: of ``output`` if that is in 8 bits."""
    rows, tokens, width = inputs.shape
    block = triton.next_power_of_2(width)
    most_warps = 8 if factors is None else 4
    _norm_kernel[(rows * tokens,)](
        inputs,
        gate.norm.weight,
        inputs if base is None else base,
        inputs if total is None else total,
        scale.norm.weight,
        inputs if output is None else output,
        inputs if factors is None else factors,
        inputs if gate.changes is None else gate.changes,
        inputs if scale.changes is None else scale.changes,
        tokens,
        _eps(gate.norm),
        _eps(scale.norm),
        width,
        gate.part * width,
        scale.part * width,
        CHANGED=gate.changes is not None,
        ADD=total is not None,
        SCALE=output is not None,
        NARROW=factors is not None,
        BLOCK=block,
        num_warps=max(1, min(most_warps, block // 512)),
    )


def _eps(norm: Any) -> float:
    """diffusers and transformers have different names for it."""
    eps: float = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    return eps


@triton.jit(do_not_specialize=["tokens"])
def _norm_kernel(
    inputs,
    weight,
    base,
    total,
    last_weight,
    output,
    factors,
    gates,
    scales,
    tokens,
    eps,
    last_eps,
    width: tl.constexpr,
    gate_offset: tl.constexpr,
    scale_offset: tl.constexpr,
    CHANGED: tl.constexpr,
    ADD: tl.constexpr,
    SCALE: tl.constexpr,
    NARROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < width
    place = token.to(tl.int64) * width + at
    change = (token // tokens) * 4 * width + at
    values = tl.load(inputs + place, inside, 0.0).to(tl.float32)
    if ADD:
        values *= tl.rsqrt(tl.sum(values * values) / width + eps)
        values *= tl.load(weight + at, inside, 0.0).to(tl.float32)
        if CHANGED:
            gate = tl.load(gates + change + gate_offset, inside, 0.0).to(tl.float32)
            values *= 2 * tl.sigmoid(2 * gate) - 1  # tanh
        values += tl.load(base + place, inside, 0.0).to(tl.float32)
        tl.store(total + place, values, inside)
    if SCALE:
        values *= tl.rsqrt(tl.sum(values * values) / width + last_eps)
        values *= tl.load(last_weight + at, inside, 0.0).to(tl.float32)
        if CHANGED:
            values *= 1 + tl.load(scales + change + scale_offset, inside, 0.0).to(tl.float32)
        if NARROW:
            most = _most(values)
            tl.store(factors + token, most / _LARGEST)
            values = (values * (_LARGEST / most)).to(tl.float8e4nv)
        tl.store(output + place, values, inside)


@triton.jit
def _most(values):
    """The largest, but never nothing."""
    return tl.maximum(tl.max(tl.abs(values)), 1e-10)


def turned(
    query: torch.Tensor, key: torch.Tensor, attention: Any, table: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both normalised head by head and turned by their places' angles. They may be parts of wider
    rows."""
    rows, tokens, width = query.shape
    half = width // attention.heads // 2
    outputs = query.new_empty(query.shape), key.new_empty(key.shape)
    _turn_kernel[(rows * tokens, 2)](
        query,
        key,
        attention.norm_q.weight,
        attention.norm_k.weight,
        table,
        *outputs,
        tokens,
        query.stride(1),
        attention.norm_q.eps,
        heads=attention.heads,
        half=half,
        HALF=triton.next_power_of_2(half),
        HEADS=triton.next_power_of_2(attention.heads),
        num_warps=4,
    )
    return outputs


@triton.jit(do_not_specialize=["tokens"])
def _turn_kernel(
    query,
    key,
    query_weight,
    key_weight,
    table,
    query_output,
    key_output,
    tokens,
    stride,
    eps,
    heads: tl.constexpr,
    half: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
):
    token = tl.program_id(0)
    inputs, weight, output = query, query_weight, query_output
    if tl.program_id(1) == 1:
        inputs, weight, output = key, key_weight, key_output
    head = tl.arange(0, HEADS)[:, None]
    at = tl.arange(0, 2 * HALF)[None, :]
    inside = (head < heads) & (at < 2 * half)
    place = head * (2 * half) + at
    values = tl.load(inputs + token.to(tl.int64) * stride + place, inside, 0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 1, keep_dims=True) / (2 * half) + eps)
    values *= scale * tl.load(weight + at, at < 2 * half, 0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(values, (HEADS, HALF, 2)))
    pair = tl.arange(0, HALF)[None, :]
    angle = table + ((token % tokens) * half + pair) * 2
    cosine, sine = tl.load(angle, pair < half, 0.0), tl.load(angle + 1, pair < half, 0.0)
    turned = tl.join(even * cosine - odd * sine, even * sine + odd * cosine)
    start = output + token.to(tl.int64) * heads * (2 * half)
    tl.store(start + place, tl.reshape(turned, (HEADS, 2 * HALF)), inside)


def _silu_times(gate: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """silu(``gate``) × ``value``."""
    output, width = torch.empty_like(gate), gate.shape[-1]
    grid = gate.numel() // width, triton.cdiv(width, _TILE)
    _silu_times_kernel[grid](gate, value, output, width, TILE=_TILE, num_warps=8)
    return output


@triton.jit
def _silu_times_kernel(gate, value, output, width: tl.constexpr, TILE: tl.constexpr):
    # A width that is known at compile time lets whole vectors be loaded under the mask.
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = at < width
    place = tl.program_id(0).to(tl.int64) * width + at
    left = tl.load(gate + place, inside, 0.0).to(tl.float32)
    right = tl.load(value + place, inside, 0.0).to(tl.float32)
    tl.store(output + place, left * tl.sigmoid(left) * right, inside)


class InPlaceOf(torch.nn.Module):
    """Computes what ``replaced`` does; ``optimisations`` puts that back."""

    def __init__(self, replaced: Any) -> None:
        super().__init__()
        self.replaced = replaced


class Norm(InPlaceOf):
    """In the place of a text encoder's root-mean-square norm."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.contiguous()
        output = torch.empty_like(hidden)
        flat = hidden.view(1, -1, hidden.shape[-1])
        _launch_norm(flat, By(self.replaced), By(self.replaced), output=output)
        return output


class Feed(InPlaceOf):
    """In the place of a text encoder's gated feed-forward layers."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        layers = self.replaced
        gated = _silu_times(layers.gate_proj(hidden), layers.up_proj(hidden))
        output: torch.Tensor = layers.down_proj(gated)
        return output


def install_text(encoder: Any) -> None:
    """Put them into a ``Qwen3Model``; any other encoder stays as it is."""
    if type(encoder).__name__ != "Qwen3Model" or encoder.config.hidden_act != "silu":
        return
    for layer in encoder.layers:
        layer.mlp = Feed(layer.mlp)
        for holder, names in (
            (layer, ("input_layernorm", "post_attention_layernorm")),
            (layer.self_attn, ("q_norm", "k_norm")),
        ):
            for name in names:
                setattr(holder, name, Norm(getattr(holder, name)))


def quantized(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``fp8.quantized``: the values in fp8 and rows × 1 factors."""
    count, width = rows.shape
    values = torch.empty_like(rows, dtype=torch.float8_e4m3fn)
    scales = torch.empty(count, 1, device=rows.device)
    block = triton.next_power_of_2(width)
    warps = max(1, min(8, block // 512))
    _quantize_kernel[(count,)](rows, values, scales, width, BLOCK=block, num_warps=warps)
    return values, scales


@triton.jit
def _quantize_kernel(rows, values, scales, width: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < width
    place = row.to(tl.int64) * width + at
    given = tl.load(rows + place, inside, 0.0).to(tl.float32)
    most = _most(given)
    tl.store(scales + row, most / _LARGEST)
    tl.store(values + place, (given * (_LARGEST / most)).to(tl.float8e4nv), inside)


def gated_narrow(both: torch.Tensor) -> Narrow:
    """silu of the first half of ``both`` (rows × tokens × two widths) times the second."""
    rows, tokens, width = *both.shape[:2], both.shape[2] // 2
    output = both.new_empty(rows, tokens, width, dtype=torch.float8_e4m3fn)
    factors = both.new_empty(rows * tokens, dtype=torch.float32)
    block = triton.next_power_of_2(width)
    warps = max(1, min(16, block // 512))
    _gated_narrow_kernel[(rows * tokens,)](
        both, output, factors, width, BLOCK=block, num_warps=warps
    )
    return Narrow(output, factors)


@triton.jit
def _gated_narrow_kernel(both, output, factors, width: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < width
    place = token.to(tl.int64) * width + at
    gate = both + token.to(tl.int64) * width + place
    left = tl.load(gate, inside, 0.0).to(tl.float32)
    right = tl.load(gate + width, inside, 0.0).to(tl.float32)
    values = left * tl.sigmoid(left) * right
    most = _most(values)
    tl.store(factors + token, most / _LARGEST)
    tl.store(output + place, (values * (_LARGEST / most)).to(tl.float8e4nv), inside)
