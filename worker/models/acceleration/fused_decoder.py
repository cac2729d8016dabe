"""Kernels of ours, in Triton, for what stands between the convolutions of a picture's decoder.

As in ``fused``: any size, sums in fp32, the same bytes each time. Pictures are 1 × channels ×
height × width with the channels last in memory, so that no convolution turns its layout. None of
them adds its own bias, which costs a pass over the whole picture: what comes after adds it.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from worker.models.acceleration.fused import InPlaceOf

_TILE = 4096  # values of one tile of a picture
_MOST_PARTS = 512  # partial sums of one picture
_ATTENDED_ROWS = 2048  # their scores take 128 MiB at 1024²
_MOST_ATTENDED = 16_384  # cells; a row of scores stays in one kernel's registers


def install(decoder: Any) -> None:
    """Put them into a decoder, whose convolutions become channels last."""
    decoder.to(memory_format=torch.channels_last)
    for part in (decoder.mid_block, *decoder.up_blocks):
        _replace(part.resnets, Residual)
        _replace(getattr(part, "upsamplers", None), Upsample)
        _replace(getattr(part, "attentions", None), Attention)
    decoder.conv_norm_out = NormSilu(decoder.conv_norm_out)
    decoder.conv_act = Passed(decoder.conv_act)


def _replace(layers: Any, kind: Any) -> None:
    for number, layer in enumerate(layers or ()):
        if layer is not None and kind.replaces(layer):
            layers[number] = kind(layer)


class Residual(InPlaceOf):
    """In the place of a decoder's ``ResnetBlock2D``."""

    @staticmethod
    def replaces(resnet: Any) -> bool:
        """Whether it computes what ``resnet`` does."""
        plain = resnet.upsample is resnet.downsample is resnet.time_emb_proj is None
        silu = isinstance(resnet.nonlinearity, torch.nn.SiLU)
        return plain and silu and resnet.output_scale_factor == 1

    def forward(self, image: torch.Tensor, temb: None = None) -> torch.Tensor:
        block, short = self.replaced, self.replaced.conv_shortcut
        hidden = _convolved(block.conv1, normed(image, block.norm1))
        hidden = normed(hidden, block.norm2, block.conv1.bias)
        hidden = _convolved(block.conv2, hidden)
        if short is None:
            return added(hidden, block.conv2.bias, image)
        return added(hidden, block.conv2.bias, _convolved(short, image), short.bias)


class Upsample(InPlaceOf):
    """In the place of an ``Upsample2D`` that doubles each cell and convolves.

    Of the nine cells that are convolved, four at most differ: so four kernels of 2 × 2, one for
    each place within a doubled cell, convolve the small picture, for 4/9 of the work.
    """

    def __init__(self, replaced: Any) -> None:
        super().__init__(replaced)
        self.weight = phase_weights(replaced.conv.weight.detach())

    @staticmethod
    def replaces(layer: Any) -> bool:
        """Whether it computes what ``layer`` does."""
        doubles = layer.use_conv and layer.interpolate and not layer.use_conv_transpose
        return doubles and layer.norm is None and layer.name == "conv"

    def forward(self, image: torch.Tensor, output_size: None = None) -> torch.Tensor:
        return interleaved(F.conv2d(image, self.weight, padding=1), self.replaced.conv.bias)


def phase_weights(weight: torch.Tensor) -> torch.Tensor:
    """Of a 3 × 3 kernel for a picture whose cells are doubled: four of 2 × 2, one after another in
    the first dimension, for its even and odd rows and columns. Sums of weights, made in fp32."""
    pairs = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], dtype=torch.float32)
    summed = torch.einsum("aiy,bjx,ocyx->abocij", pairs, pairs, weight.float())
    return summed.flatten(0, 2).to(weight.dtype, memory_format=torch.channels_last)


class Attention(InPlaceOf):
    """In the place of a decoder's ``Attention``, whose one head of 512 values no quick kernel
    takes: matrix products, and a softmax of ours between them."""

    @staticmethod
    def replaces(layer: Any) -> bool:
        """Whether it computes what ``layer`` does."""
        plain = layer.spatial_norm is layer.norm_q is layer.norm_k is None and layer.heads == 1
        residual = layer.residual_connection and layer.rescale_output_factor == 1
        return plain and residual and layer.group_norm is not None

    def forward(self, image: torch.Tensor, temb: None = None) -> torch.Tensor:
        layer = self.replaced
        _, channels, height, width = image.shape
        if height * width > _MOST_ATTENDED:
            output: torch.Tensor = layer(image)
            return output
        cells = normed(image, layer.group_norm, silu=False).permute(0, 2, 3, 1).view(-1, channels)
        query, key, value = layer.to_q(cells), layer.to_k(cells), layer.to_v(cells)
        cells = layer.to_out[0](attended(query, key, value, layer.scale))
        turned: torch.Tensor = cells.view(1, height, width, channels).permute(0, 3, 1, 2)
        return image + turned


class NormSilu(InPlaceOf):
    """In the place of a group norm whose output goes through silu."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return normed(image, self.replaced)


class Passed(InPlaceOf):
    """In the place of a silu that the norm before it has done."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image


def _convolved(conv: torch.nn.Conv2d, image: torch.Tensor) -> torch.Tensor:
    """Without the bias."""
    return F.conv2d(image, conv.weight, None, conv.stride, conv.padding)


def attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention of one head, cells × channels each; the scores are fp32."""
    output = torch.empty_like(query)
    for rows, part in zip(query.split(_ATTENDED_ROWS), output.split(_ATTENDED_ROWS), strict=True):
        torch.mm(_softmax(_scores(rows, key), scale, value.dtype), value, out=part)
    return output


def _scores(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    if query.dtype == torch.float32:
        return query @ key.t()
    return torch.mm(query, key.t(), out_dtype=torch.float32)


def _softmax(scores: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    """Of each row of ``scores`` × ``scale``."""
    rows, width = scores.shape
    output = torch.empty(rows, width, dtype=dtype, device=scores.device)
    block = triton.next_power_of_2(width)
    warps = max(1, min(16, block // 512))
    _softmax_kernel[(rows,)](scores, output, scale, width, BLOCK=block, num_warps=warps)
    return output


@triton.jit(do_not_specialize=["width"])
def _softmax_kernel(scores, output, scale, width, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    inside = at < width
    place = tl.program_id(0).to(tl.int64) * width + at
    values = tl.load(scores + place, inside, float("-inf")) * scale
    values = tl.exp(values - tl.max(values))
    tl.store(output + place, values / tl.sum(values), inside)


def added(
    image: torch.Tensor,
    bias: torch.Tensor,
    more: torch.Tensor | None = None,
    more_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The sum, in the place of ``image``; a bias has one value a channel."""
    channels, cells = image.shape[1], image.shape[2] * image.shape[3]
    image = image.contiguous(memory_format=torch.channels_last)
    if more is not None:
        more = more.contiguous(memory_format=torch.channels_last)
    sizes, grid = _tiles(channels, cells)
    _add_kernel[grid](
        image,
        bias,
        image if more is None else more,
        bias if more_bias is None else more_bias,
        cells,
        MORE=more is not None,
        MORE_BIAS=more_bias is not None,
        **sizes,
        num_warps=8,
    )
    return image


@triton.jit(do_not_specialize=["cells"])
def _add_kernel(
    image,
    bias,
    more,
    more_bias,
    cells,
    MORE: tl.constexpr,
    MORE_BIAS: tl.constexpr,
    channels: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
):
    channel, cell, inside = _tile(cells, channels, C, ROWS)
    place = cell.to(tl.int64) * channels + channel
    values = tl.load(image + place, inside, 0.0).to(tl.float32)
    values += tl.load(bias + channel, channel < channels, 0.0).to(tl.float32)
    if MORE:
        values += tl.load(more + place, inside, 0.0).to(tl.float32)
    if MORE_BIAS:
        values += tl.load(more_bias + channel, channel < channels, 0.0).to(tl.float32)
    tl.store(image + place, values, inside)


def interleaved(phases: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """What ``phase_weights`` gave in its places, twice as high and wide; ``bias`` is added."""
    phases = phases.contiguous(memory_format=torch.channels_last)
    rows, channels, height, width = phases.shape
    channels, height, width = channels // 4, 2 * (height - 1), 2 * (width - 1)
    output = torch.empty(
        (rows, channels, height, width),
        dtype=phases.dtype,
        device=phases.device,
        memory_format=torch.channels_last,
    )
    sizes, grid = _tiles(channels, height * width)
    _interleave_kernel[grid](phases, bias, output, height * width, width, **sizes, num_warps=8)
    return output


@triton.jit(do_not_specialize=["cells", "width"])
def _interleave_kernel(
    phases, bias, output, cells, width, channels: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr
):
    channel, cell, inside = _tile(cells, channels, C, ROWS)
    row, column = cell // width, cell % width
    source = (row // 2 + row % 2) * (width // 2 + 1) + column // 2 + column % 2
    phase = row % 2 * 2 + column % 2
    place = (source * 4 + phase).to(tl.int64) * channels + channel
    values = tl.load(phases + place, inside, 0.0).to(tl.float32)
    values += tl.load(bias + channel, channel < channels, 0.0).to(tl.float32)
    tl.store(output + cell.to(tl.int64) * channels + channel, values, inside)


def _tiles(channels: int, cells: int) -> tuple[dict[str, int], tuple[int]]:
    """How a kernel cuts a picture into tiles of whole cells, and its grid."""
    padded = triton.next_power_of_2(channels)
    rows = max(1, _TILE // padded)
    return {"channels": channels, "C": padded, "ROWS": rows}, (triton.cdiv(cells, rows),)


@triton.jit
def _tile(cells, channels: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr):
    """Channels, cells, and which of them there are, of this program's tile as by ``_tiles``."""
    channel = tl.arange(0, C)[None, :]
    cell = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    return channel, cell, (cell < cells) & (channel < channels)


def normed(
    image: torch.Tensor,
    norm: torch.nn.GroupNorm,
    bias: torch.Tensor | None = None,
    *,
    silu: bool = True,
) -> torch.Tensor:
    """The group norm of ``image`` plus ``bias`` (one value a channel), through silu."""
    image = image.contiguous(memory_format=torch.channels_last)
    channels, cells = image.shape[1], image.shape[2] * image.shape[3]
    biases = {"bias": norm.bias if bias is None else bias, "BIAS": bias is not None}
    sums, counted = _sums_of(image, norm, biases)
    lines = torch.empty(2, channels, device=image.device)
    output = torch.empty_like(image)
    width = channels // norm.num_groups
    _line_kernel[(norm.num_groups,)](
        sums,
        norm.weight,
        norm.bias,
        lines,
        counted,
        len(sums),
        norm.eps,
        channels,
        width,
        **biases,
        WIDTH=triton.next_power_of_2(width),
        PARTS=64,
    )
    sizes, grid = _tiles(channels, cells)
    _line_silu_kernel[grid](image, lines, output, cells, SILU=silu, **sizes, num_warps=8)
    return output


def _sums_of(image: torch.Tensor, norm: Any, biases: Mapping[str, Any]) -> tuple[torch.Tensor, int]:
    """Sums and sums of squares of each channel, parts × 2 × channels, and of how many cells; of a
    part of a picture, those of the whole one."""
    shared = getattr(norm, "shared", None)
    if shared is None or not shared.on:
        return _sums(image, biases), image.shape[2] * image.shape[3]
    if not shared.known:
        core = shared.core(image)
        sums = _sums(core.contiguous(memory_format=torch.channels_last), biases)
        shared.tell(sums.sum(0), core.shape[2] * core.shape[3])
    return shared.sums[None], shared.cells


def _sums(image: torch.Tensor, biases: Mapping[str, Any]) -> torch.Tensor:
    channels, cells = image.shape[1], image.shape[2] * image.shape[3]
    sizes, (blocks,) = _tiles(channels, cells)
    part = triton.cdiv(blocks, _MOST_PARTS) * sizes["ROWS"]  # cells of one partial sum
    parts = triton.cdiv(cells, part)
    sums = torch.empty(parts, 2, channels, device=image.device)
    _sum_kernel[(parts,)](image, sums, cells, part, **biases, **sizes, num_warps=8)
    return sums


@triton.jit(do_not_specialize=["cells", "part"])
def _sum_kernel(
    image,
    sums,
    cells,
    part,
    bias,
    BIAS: tl.constexpr,
    channels: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
):
    number = tl.program_id(0)
    channel = tl.arange(0, C)
    total = tl.zeros((ROWS, C), tl.float32)
    squares = tl.zeros((ROWS, C), tl.float32)
    shift = tl.zeros((C,), tl.float32)
    if BIAS:
        shift += tl.load(bias + channel, channel < channels, 0.0).to(tl.float32)
    for start in range(0, part, ROWS):
        cell = number * part + start + tl.arange(0, ROWS)[:, None]
        inside = (cell < cells) & (channel[None, :] < channels)
        place = cell.to(tl.int64) * channels + channel[None, :]
        values = tl.load(image + place, inside, 0.0).to(tl.float32)
        values = tl.where(inside, values + shift[None, :], 0.0)
        total += values
        squares += values * values
    place = sums + number * 2 * channels + channel
    tl.store(place, tl.sum(total, 0), channel < channels)
    tl.store(place + channels, tl.sum(squares, 0), channel < channels)


@triton.jit(do_not_specialize=["cells", "parts"])
def _line_kernel(
    sums,
    weight,
    norm_bias,
    lines,
    cells,
    parts,
    eps,
    channels: tl.constexpr,
    width: tl.constexpr,
    bias,
    BIAS: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
):
    """What to multiply each channel of one group with, and what to add."""
    at = tl.arange(0, WIDTH)
    inside = at < width
    channel = tl.program_id(0) * width + at
    total = tl.zeros((PARTS, WIDTH), tl.float32)
    squares = tl.zeros((PARTS, WIDTH), tl.float32)
    for start in range(0, parts, PARTS):
        number = start + tl.arange(0, PARTS)[:, None]
        there = (number < parts) & inside[None, :]
        place = sums + number * 2 * channels + channel[None, :]
        total += tl.load(place, there, 0.0)
        squares += tl.load(place + channels, there, 0.0)
    count = cells.to(tl.float32) * width
    mean = tl.sum(total) / count
    variance = tl.sum(squares) / count - mean * mean
    factor = tl.rsqrt(variance + eps) * tl.load(weight + channel, inside, 0.0).to(tl.float32)
    shift = tl.zeros((WIDTH,), tl.float32) - mean
    if BIAS:
        shift += tl.load(bias + channel, inside, 0.0).to(tl.float32)
    summand = tl.load(norm_bias + channel, inside, 0.0).to(tl.float32) + shift * factor
    tl.store(lines + channel, factor, inside)
    tl.store(lines + channels + channel, summand, inside)


@triton.jit(do_not_specialize=["cells"])
def _line_silu_kernel(
    image,
    lines,
    output,
    cells,
    SILU: tl.constexpr,
    channels: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
):
    channel, cell, inside = _tile(cells, channels, C, ROWS)
    place = cell.to(tl.int64) * channels + channel
    factor = tl.load(lines + channel, channel < channels, 0.0)
    summand = tl.load(lines + channels + channel, channel < channels, 0.0)
    values = tl.load(image + place, inside, 0.0).to(tl.float32) * factor + summand
    if SILU:
        values *= tl.sigmoid(values)
    tl.store(output + place, values, inside)
