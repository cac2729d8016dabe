"""One step of Z-Image on several cards at once.

Each process holds all weights and a share of the tokens: of the picture's and of the text's. Within
attention it holds all tokens of a share of the heads; queries, keys and values go to where they are
needed before it, and what it gives goes back after it (DeepSpeed's Ulysses,
https://arxiv.org/abs/2309.14509). Everything else of a step looks at one token at a time. Keys may
stand in any order, so those of one process stay together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend

from worker.models.zimage.dense import (
    PATCH,
    PATCH_KEY,
    DenseTransformer,
    fused_layers,
    own_layers,
    padded,
    patches_of,
    unpatched,
)
from worker.models.zimage.rotary import Attend, RealRotaryProcessor, attended

LEAD = 0
"""The process that is asked for a step, and that gets its output."""

Inputs = Sequence[torch.Tensor]
"""Latents, times and captions, as a ``DenseTransformer`` takes them."""
Counts = tuple[int, ...]
"""Tokens of one row in each process."""


def shares(total: int, world: int) -> Counts:
    """``total`` things among ``world`` processes; the first ones take what is left over."""
    each, more = divmod(total, world)
    return tuple(each + (rank < more) for rank in range(world))


def share_of(total: int, world: int, rank: int) -> slice:
    """Where the things of ``rank`` are by ``shares``."""
    start = sum(shares(total, world)[:rank])
    return slice(start, start + shares(total, world)[rank])


@dataclass(frozen=True)
class Shape:
    """Of one forward. ``height`` and ``width`` in cells of 8 pixels; ``text``: tokens of captions,
    padded."""

    rows: int
    channels: int
    height: int
    width: int
    text: int

    @classmethod
    def of(cls, latents: torch.Tensor, captions: torch.Tensor) -> "Shape":
        rows, channels, height, width = latents.shape
        return cls(rows, channels, height, width, captions.shape[1])

    @property
    def patches(self) -> int:
        return self.height // PATCH * (self.width // PATCH)

    @property
    def patch_values(self) -> int:
        return PATCH * PATCH * self.channels

    @property
    def tokens(self) -> int:
        """Of one row, padded as the model pads them."""
        return padded(self.patches) + self.text

    def pictures(self, world: int) -> Counts:
        """Tokens of the picture in each process; padding is among the last ones."""
        return shares(padded(self.patches), world)

    def all(self, world: int) -> Counts:
        texts = shares(self.text, world)
        return tuple(map(sum, zip(self.pictures(world), texts, strict=True)))

    def drawn(self, world: int) -> Counts:
        """Tokens of the picture in each process that are not padding."""
        starts = [share_of(padded(self.patches), world, rank).start for rank in range(world)]
        found = zip(starts, self.pictures(world), strict=True)
        return tuple(max(0, min(count, self.patches - start)) for start, count in found)


@dataclass(frozen=True)
class Sizes:
    """What an exchange must know of a model and its processes."""

    rank: int
    world: int
    width: int  # of the model
    heads: int
    refiners: int  # blocks that see the picture alone
    layers: int  # blocks that see picture and text

    @classmethod
    def of(cls, transformer: Any, rank: int, world: int) -> "Sizes":
        config = transformer.config
        refiners, layers = len(transformer.noise_refiner), len(transformer.layers)
        return cls(rank, world, config.dim, config.n_heads, refiners, layers)

    @property
    def heads_of(self) -> Counts:
        return shares(self.heads, self.world)

    @property
    def widths(self) -> Counts:
        """Values of a token's share of heads, in each process."""
        return tuple(count * (self.width // self.heads) for count in self.heads_of)


class Exchange(Protocol):
    """How processes meet within a forward. Each calls ``begin``, ``inputs``, then ``attend`` for
    each block, and ``output``, or after a failure anywhere between ``begin`` and the end
    ``keep_step``: the others would wait for it for ever. What they compute then is wrong."""

    def begin(self, shape: Shape) -> None: ...

    def inputs(self, given: Inputs) -> Inputs:
        """What the lead was ``given``; the others are given nothing."""

    def attend(
        self,
        counts: Counts,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        heads: int,
    ) -> torch.Tensor:
        """Attention over all tokens, of which ``counts`` are in each process."""

    def output(self, own: torch.Tensor) -> torch.Tensor:
        """rows × patches × values: everybody's, but only the lead's are right."""

    def keep_step(self) -> None: ...


class Share(DenseTransformer):
    """One process's part. As a ``DenseTransformer`` it computes captions, by itself."""

    def __init__(
        self,
        transformer: Any,
        sizes: Sizes,
        exchange: Exchange,
        *,
        kernels: bool = False,
        ways: Mapping[str, Any] | None = None,
        backend: SDPBackend | None = None,
    ) -> None:
        super().__init__(transformer, kernels=kernels, ways=ways, backend=backend)
        self._sizes = sizes
        self._context = exchange
        self._counts: Counts = ()
        self._blocks: Callable[..., torch.Tensor] = own_layers
        if kernels:
            self._blocks = partial(fused_layers, **{**(ways or {}), "attend": self._attend})
        else:
            for block in (*transformer.noise_refiner, *transformer.layers):
                block.attention.set_processor(RealRotaryProcessor(self._attend))

    @property
    def model(self) -> Any:
        """The whole transformer."""
        return self._model

    def forward(self, shape: Shape) -> Callable[..., torch.Tensor]:
        """What gives the model's output for each row, fp32, shaped as the latents; right in the
        lead only. All processes call it, the lead with latents, times and captions."""
        world, rank, picture = self._sizes.world, self._sizes.rank, padded(shape.patches)
        table = self._table(shape.height // PATCH, shape.width // PATCH, shape.text)
        angles = table[:picture][share_of(picture, world, rank)].contiguous()
        texts = table[picture:][share_of(shape.text, world, rank)]
        both = torch.cat([angles, texts])

        def advance(*given: torch.Tensor) -> torch.Tensor:
            self._context.begin(shape)
            try:
                with self._attention():
                    return self._advanced(shape, given, angles, both)
            except Exception:
                if not _recording():  # of a graph: then nobody has met anybody
                    self._context.keep_step()
                raise

        return advance

    def _advanced(
        self,
        shape: Shape,
        given: Sequence[torch.Tensor],
        angles: torch.Tensor,
        all_angles: torch.Tensor,
    ) -> torch.Tensor:
        model, world, rank = self._model, self._sizes.world, self._sizes.rank
        latents, times, captions = self._context.inputs(given)
        time = model.t_embedder(times * model.t_scale).type_as(latents)
        patches = patches_of(latents)[:, share_of(padded(shape.patches), world, rank)]
        tokens = self._embedded(patches, len(angles))
        self._counts = shape.pictures(world)
        tokens = self._blocks(model.noise_refiner, tokens, angles, time)
        tokens = torch.cat([tokens, captions[:, share_of(shape.text, world, rank)]], 1)
        self._counts = shape.all(world)
        tokens = self._blocks(model.layers, tokens, all_angles, time)
        output = model.all_final_layer[PATCH_KEY](tokens[:, : patches.shape[1]], c=time)
        return unpatched(self._context.output(output), latents.shape).float()

    def _embedded(self, patches: torch.Tensor, count: int) -> torch.Tensor:
        """``count`` tokens of each row; where there are fewer ``patches``, padding follows."""
        tokens: torch.Tensor = self._model.all_x_embedder[PATCH_KEY](patches)
        if missing := count - patches.shape[1]:
            padding = self._model.x_pad_token.expand(len(patches), missing, -1)
            tokens = torch.cat([tokens, padding], 1)
        return tokens

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int
    ) -> torch.Tensor:
        return self._context.attend(self._counts, query, key, value, heads)


def _recording() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


@dataclass(frozen=True)
class _Meeting:
    """Values that a process gives to each, and gets from each."""

    gives: Counts
    gets: Counts


class GlooExchange:
    """Through torch's process group, which must be there: for processes on a CPU."""

    def __init__(self, sizes: Sizes, dtype: torch.dtype, attend: Attend = attended) -> None:
        self._sizes = sizes
        self._dtype = dtype
        self._attend = attend
        self._shape = Shape(0, 0, 0, 0, 0)
        self._due: list[_Meeting] = []

    def begin(self, shape: Shape) -> None:
        sizes, rank = self._sizes, self._sizes.rank
        count = sum(_sizes_of_inputs(shape, sizes.width))
        nothing = (0,) * sizes.world
        self._shape = shape
        gives = (count,) * sizes.world if rank == LEAD else nothing
        self._due = [_Meeting(gives, _only(count, sizes.world))]
        for counts in (
            *[shape.pictures(sizes.world)] * sizes.refiners,
            *[shape.all(sizes.world)] * sizes.layers,
        ):
            self._due += self._of_attention(counts)
        drawn = [shape.rows * each * shape.patch_values for each in shape.drawn(sizes.world)]
        gets = tuple(drawn) if rank == LEAD else nothing
        self._due.append(_Meeting(_only(drawn[rank], sizes.world), gets))

    def _of_attention(self, counts: Counts) -> list[_Meeting]:
        rows, widths, rank = self._shape.rows, self._sizes.widths, self._sizes.rank
        gives = tuple(rows * counts[rank] * width for width in widths)
        gets = tuple(rows * count * widths[rank] for count in counts)
        three = [tuple(3 * each for each in side) for side in (gives, gets)]
        return [_Meeting(three[0], three[1]), _Meeting(gets, gives)]

    def inputs(self, given: Inputs) -> Inputs:
        flat = [each.float().flatten() for each in given] * self._sizes.world
        got = self._meet(torch.cat(flat) if flat else torch.empty(0))
        shape, width = self._shape, self._sizes.width
        latents, times, captions = torch.split(got, _sizes_of_inputs(shape, width))
        return (
            latents.view(shape.rows, shape.channels, shape.height, shape.width).to(self._dtype),
            times,
            captions.view(shape.rows, shape.text, width).to(self._dtype),
        )

    def attend(
        self,
        counts: Counts,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        heads: int,
    ) -> torch.Tensor:
        sizes, rows = self._sizes, len(query)
        widths = sizes.widths
        given = torch.split(torch.stack([query, key, value]), list(widths), -1)
        got = self._meet(torch.cat([each.flatten() for each in given]))
        own = [3 * rows * count * widths[sizes.rank] for count in counts]
        parts = torch.cat(
            [
                each.view(3, rows, count, -1)
                for each, count in zip(torch.split(got, own), counts, strict=True)
            ],
            2,
        )
        seen = self._attend(parts[0], parts[1], parts[2], sizes.heads_of[sizes.rank])
        got = self._meet(torch.cat([each.flatten() for each in torch.split(seen, list(counts), 1)]))
        count = query.shape[1]
        back = torch.split(got, [rows * count * width for width in widths])
        return torch.cat([each.view(rows, count, -1) for each in back], -1)

    def output(self, own: torch.Tensor) -> torch.Tensor:
        shape, sizes = self._shape, self._sizes
        got = self._meet(own.flatten())
        if sizes.rank != LEAD:
            return own.new_empty(shape.rows, shape.patches, shape.patch_values)
        drawn = shape.drawn(sizes.world)
        parts = torch.split(got, [shape.rows * each * shape.patch_values for each in drawn])
        found = zip(parts, drawn, strict=True)
        values = shape.patch_values
        return torch.cat([part.view(shape.rows, count, values) for part, count in found], 1)

    def keep_step(self) -> None:
        while self._due:
            self._meet(torch.zeros(sum(self._due[0].gives)))

    def _meet(self, values: torch.Tensor) -> torch.Tensor:
        meeting = self._due.pop(0)
        got = torch.empty(sum(meeting.gets))
        dist.all_to_all_single(got, values.float(), list(meeting.gets), list(meeting.gives))
        return got.to(values.dtype)


def _only(count: int, world: int) -> Counts:
    """All from or to the lead."""
    return tuple(count if rank == LEAD else 0 for rank in range(world))


def _sizes_of_inputs(shape: Shape, width: int) -> list[int]:
    """Values of latents, times and captions."""
    latents = shape.rows * shape.channels * shape.height * shape.width
    return [latents, shape.rows, shape.rows * shape.text * width]
