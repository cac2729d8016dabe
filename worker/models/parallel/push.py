"""Processes that write into the memory of each other's cards.

Over NVLink that takes half of what NCCL's ``all_to_all`` takes, and it can be part of a CUDA graph.
Symmetric memory as torch has it, without multicast:
https://docs.pytorch.org/docs/stable/symmetric_memory.html
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric
import triton
import triton.language as tl

from worker.models.parallel.ulysses import Counts, Inputs, Shape, Sizes
from worker.models.zimage.dense import padded
from worker.models.zimage.rotary import Attend

_BLOCK = 4096  # values of one program
_MORE_TOKENS = 64  # rows whose shares are larger by one or two tokens
LONGEST_TEXT = 512
_TEXTS = 4  # of the longest, at once
_PATCH_VALUES = 64


def tokens_of(pixels: int) -> int:
    """Most tokens of pictures with so many pixels in all, their texts included."""
    return padded(pixels // 256) + _TEXTS * LONGEST_TEXT


class Room:
    """Where the others write. Of ``tokens`` tokens of all rows: queries, keys and values of this
    process's heads; and all heads of its own tokens."""

    def __init__(self, sizes: Sizes, tokens: int) -> None:
        self._sizes = sizes
        self.tokens = tokens
        self.own = tokens // sizes.world + _MORE_TOKENS
        self.heads_values = 3 * tokens * max(sizes.widths)
        inputs = tokens * _PATCH_VALUES + _TEXTS * LONGEST_TEXT * sizes.width
        self.values = self.heads_values + max(self.own * sizes.width, inputs)

    def holds(self, shape: Shape) -> bool:
        """Whether one forward finds room."""
        sizes = self._sizes
        own = shape.rows * max(shape.all(sizes.world))
        inputs = sum(_sizes_of_inputs(shape, sizes, 2))
        fits = shape.rows * shape.tokens <= self.tokens and own <= self.own
        return fits and inputs <= self.values - self.heads_values


class PushExchange:
    """``memory``: of this process; ``places``: addresses of everybody's, in int64 on the device;
    ``meet``: waits, on the device, until all have come as far; ``attend``: attention on one."""

    def __init__(
        self,
        sizes: Sizes,
        room: Room,
        memory: torch.Tensor,
        places: torch.Tensor,
        meet: Callable[[], None],
        attend: Attend,
    ) -> None:
        self._sizes = sizes
        self._heads, self._own = memory.tensor_split([room.heads_values])
        self._places = places
        self._offset = room.heads_values  # of the second part
        self._meet_all = meet
        self._attend = attend
        self._shape = Shape(0, 0, 0, 0, 0)
        self._left = 0
        self._ends: dict[Counts, torch.Tensor] = {}  # a graph may read each: none ever goes

    def begin(self, shape: Shape) -> None:
        self._shape = shape
        self._left = 2 + 2 * (self._sizes.refiners + self._sizes.layers)

    def inputs(self, given: Inputs) -> Inputs:
        shape, sizes, dtype = self._shape, self._sizes, self._own.dtype
        counts = _sizes_of_inputs(shape, sizes, torch.float32.itemsize // dtype.itemsize)
        if given:
            latents, times, captions = given
            flat = torch.cat([times.view(dtype), latents.flatten(), captions.flatten()])
            grid = triton.cdiv(len(flat), _BLOCK), sizes.world
            _copy_kernel[grid](
                flat, self._places, self._offset, len(flat), sizes.rank, BLOCK=_BLOCK, num_warps=8
            )
            self._meet()
            return given
        self._meet()
        flat = self._own[: sum(counts)].clone()  # results of attention will be written over it
        times, latents, captions = torch.split(flat, counts)
        return (
            latents.view(shape.rows, shape.channels, shape.height, shape.width),
            times.view(torch.float32),
            captions.view(shape.rows, shape.text, sizes.width),
        )

    def attend(
        self,
        counts: Counts,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        heads: int,
    ) -> torch.Tensor:
        sizes, rank = self._sizes, self._sizes.rank
        rows, count, _ = query.shape
        total, own = sum(counts), sizes.widths[rank]
        self._push(counts, query, key, value)
        self._meet()
        parts = self._heads[: 3 * rows * total * own].view(3, rows, total, own)
        seen = self._attend(parts[0], parts[1], parts[2], sizes.heads_of[rank]).contiguous()
        self._push_back(counts, seen)
        self._meet()
        back: torch.Tensor = self._own[: rows * count * sizes.width]
        return back.view(rows, count, sizes.width)

    def _push(
        self, counts: Counts, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        sizes, rank = self._sizes, self._sizes.rank
        rows, count, _ = query.shape
        _push_kernel[(rows * count, 3, sizes.world)](
            query,
            key,
            value,
            *(each.stride(0) for each in (query, key, value)),
            *(each.stride(1) for each in (query, key, value)),
            self._places,
            count,
            sum(counts[:rank]),
            rows * sum(counts),
            sum(counts),
            heads=sizes.heads,
            size=sizes.width // sizes.heads,
            world=sizes.world,
            BLOCK=triton.next_power_of_2(max(sizes.widths)),
            num_warps=4,
        )

    def _push_back(self, counts: Counts, seen: torch.Tensor) -> None:
        sizes, rank = self._sizes, self._sizes.rank
        rows, total, own = seen.shape
        _push_back_kernel[(rows * total,)](
            seen,
            self._places,
            self._offset,
            self._ends_of(counts),
            total,
            sum(sizes.widths[:rank]),
            own=own,
            width=sizes.width,
            world=sizes.world,
            BLOCK=triton.next_power_of_2(own),
            num_warps=4,
        )

    def output(self, own: torch.Tensor) -> torch.Tensor:
        shape, sizes = self._shape, self._sizes
        drawn = shape.drawn(sizes.world)
        rows, count, values = own.shape
        if count:
            _collect_kernel[(rows * count,)](
                own.contiguous(),
                self._places,
                count,
                sum(drawn[: sizes.rank]),
                shape.patches,
                values=values,
                BLOCK=triton.next_power_of_2(values),
                num_warps=1,
            )
        self._meet()
        every: torch.Tensor = self._heads[: rows * shape.patches * values]
        return every.view(rows, shape.patches, values)

    def keep_step(self) -> None:
        while self._left:
            self._meet()

    def _meet(self) -> None:
        self._left -= 1
        self._meet_all()

    def _ends_of(self, counts: Counts) -> torch.Tensor:
        """Where the tokens of each process begin, and where the last ones end."""
        if counts not in self._ends:
            starts = [sum(counts[:rank]) for rank in range(len(counts) + 1)]
            self._ends[counts] = torch.tensor(starts, dtype=torch.int32).to(self._places.device)
        return self._ends[counts]


def connected(
    sizes: Sizes, room: Room, dtype: torch.dtype, device: torch.device, attend: Attend
) -> PushExchange:
    """Between all processes of torch's group, who all call it."""
    memory = symmetric.empty(room.values, dtype=dtype, device=device)
    group = dist.group.WORLD
    assert group is not None, "join comes first"
    handle = symmetric.rendezvous(memory, group)
    places = [
        handle.get_buffer(rank, (room.values,), dtype).data_ptr() for rank in range(sizes.world)
    ]
    if places[sizes.rank] != memory.data_ptr():
        raise RuntimeError("symmetric memory is not where torch says it is")
    addresses = torch.tensor(places, dtype=torch.int64).to(device)

    def meet() -> None:
        handle.barrier(channel=0)

    return PushExchange(sizes, room, memory, addresses, meet, attend)


def _sizes_of_inputs(shape: Shape, sizes: Sizes, wide: int) -> list[int]:
    """Values of times, each as many as ``wide``, of latents and of captions."""
    latents = shape.rows * shape.channels * shape.height * shape.width
    return [shape.rows * wide, latents, shape.rows * shape.text * sizes.width]


@triton.jit
def _place(places, rank, like):
    """The memory of ``rank``, of values as ``like`` points to."""
    return tl.load(places + rank).to(like.dtype)


@triton.jit(do_not_specialize=["count", "offset", "rank"])
def _copy_kernel(source, places, offset, count, rank, BLOCK: tl.constexpr):
    to = tl.program_id(1)
    if to != rank:
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        values = tl.load(source + at, at < count)
        tl.store(_place(places, to, source) + offset + at, values, at < count)


@triton.jit(do_not_specialize=["count", "first", "all_tokens", "total"])
def _push_kernel(
    query,
    key,
    value,
    query_row,
    key_row,
    value_row,
    query_stride,
    key_stride,
    value_stride,
    places,
    count,
    first,
    all_tokens,
    total,
    heads: tl.constexpr,
    size: tl.constexpr,
    world: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A token's share of heads into the memory of the process ``to``: which × row × token."""
    row, token = tl.program_id(0) // count, tl.program_id(0) % count
    which, to = tl.program_id(1), tl.program_id(2)
    each: tl.constexpr = heads // world
    more: tl.constexpr = heads % world
    width = (each + (to < more).to(tl.int32)) * size
    column = (to * each + tl.minimum(to, more)) * size
    source = query + row.to(tl.int64) * query_row + token.to(tl.int64) * query_stride
    if which == 1:
        source = key + row.to(tl.int64) * key_row + token.to(tl.int64) * key_stride
    if which == 2:
        source = value + row.to(tl.int64) * value_row + token.to(tl.int64) * value_stride
    at = tl.arange(0, BLOCK)
    values = tl.load(source + column + at, at < width)
    place = which * all_tokens + row * total + first + token
    goal = _place(places, to, query) + place.to(tl.int64) * width
    tl.store(goal + at, values, at < width)


@triton.jit(do_not_specialize=["offset", "total", "column"])
def _push_back_kernel(
    seen,
    places,
    offset,
    ends,
    total,
    column,
    own: tl.constexpr,
    width: tl.constexpr,
    world: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What a share of heads has made of a token to the process whose token it is."""
    number = tl.program_id(0).to(tl.int64)
    row, token = number // total, number % total
    at = tl.arange(0, BLOCK)
    values = tl.load(seen + number * own + at, at < own)
    for to in tl.static_range(world):
        start, end = tl.load(ends + to), tl.load(ends + to + 1)
        if (token >= start) & (token < end):
            place = row * (end - start) + token - start
            goal = _place(places, to, seen) + offset + place * width + column
            tl.store(goal + at, values, at < own)


@triton.jit(do_not_specialize=["count", "first", "total"])
def _collect_kernel(own, places, count, first, total, values: tl.constexpr, BLOCK: tl.constexpr):
    number = tl.program_id(0).to(tl.int64)
    row, token = number // count, number % count
    at = tl.arange(0, BLOCK)
    found = tl.load(own + number * values + at, at < values)
    goal = _place(places, 0, own) + (row * total + first + token) * values
    tl.store(goal + at, found, at < values)
