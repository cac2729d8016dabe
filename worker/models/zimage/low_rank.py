"""Adapters of the rows of a batch: to the outputs of linear layers is added what each row's say.

y += s · (x Aᵀ) Bᵀ, with A and B of the rows stacked and filled up with zeros to the largest rank,
so that rows with different adapters, and with none, share a step (as Punica and S-LoRA do it for
language models). No weight is changed: a batch without adapters runs what it would run.
"""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from worker.models.loras.device import OnDevice

_OF_CAPTIONS = ("context_refiner.", "cap_embedder.")
"""What of the model prompts go through, once for all steps."""


class Scaled(NamedTuple):
    lora: OnDevice
    scale: float


Row = tuple[Scaled, ...]
"""The adapters of one row of a batch."""


def of_captions(row: Row) -> Row:
    """Those of ``row`` that change what is seen of its prompt."""
    return tuple(each for each in row if any(n.startswith(_OF_CAPTIONS) for n in each.lora.pairs))


def key_of(row: Row) -> Hashable:
    """Equal for rows with the same adapters, equally strong."""
    return tuple((each.lora.key, each.scale) for each in row)


@contextmanager
def added(model: torch.nn.Module, rows: Sequence[Row]) -> Iterator[None]:
    """While it lasts, calls of ``model``'s linear layers with a batch of these ``rows`` give what
    they give with each row's adapters. Layers must be called as modules."""
    names = {name for row in rows for each in row for name in each.lora.pairs}
    modules = dict(model.named_modules())
    handles = [modules[n].register_forward_hook(_Delta.of(n, rows)) for n in sorted(names)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Part(NamedTuple):
    """Of a row at one layer: rank × inputs, outputs × rank, a factor for each of the rank."""

    a: torch.Tensor
    b: torch.Tensor
    scales: tuple[float, ...]


class _Delta:
    """A forward hook. ``places``: rows that have something for this layer; None: all have."""

    def __init__(self, parts: Sequence[_Part], places: Sequence[int] | None) -> None:
        self._parts = parts
        self._places = places

    @classmethod
    def of(cls, name: str, rows: Sequence[Row]) -> "_Delta":
        """Of layer ``name``."""
        known: dict[Hashable, _Part] = {}  # rows with the same adapters have the same tensors
        parts, places = [], []
        for place, row in enumerate(rows):
            having = tuple(each for each in row if name in each.lora.pairs)
            if having:
                parts.append(known.setdefault(key_of(having), _part(name, having)))
                places.append(place)
        return cls(parts, None if len(places) == len(rows) else places)

    def __call__(self, module: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> torch.Tensor:
        given: torch.Tensor = inputs[0]
        result: torch.Tensor = output
        wide, sums = (given[:, None], result[:, None]) if given.ndim == 2 else (given, result)
        if self._places is not None:
            at = torch.tensor(self._places, device=wide.device)
            sums.index_add_(0, at, self._products(wide[at]).to(sums.dtype))
        else:
            sums += self._products(wide).to(sums.dtype)
        return result

    def _products(self, rows: torch.Tensor) -> torch.Tensor:
        first = self._parts[0]
        rows = rows.to(first.a.dtype)
        rank = max(len(part.scales) for part in self._parts)
        scales = torch.tensor(
            [[*part.scales, *[0.0] * (rank - len(part.scales))] for part in self._parts],
            device=rows.device,
            dtype=rows.dtype,
        )[:, None]
        if all(part is first for part in self._parts):  # nothing to stack
            return rows @ first.a.T * scales @ first.b.T
        a = rows.new_zeros(len(rows), rank, rows.shape[-1])
        b = rows.new_zeros(len(rows), len(first.b), rank)
        for place, part in enumerate(self._parts):
            a[place, : len(part.scales)] = part.a
            b[place, :, : len(part.scales)] = part.b
        return torch.bmm(torch.bmm(rows, a.mT) * scales, b.mT)


def _part(name: str, row: Row) -> _Part:
    """Several adapters of one row are one of all their ranks."""
    pairs = [each.lora.pairs[name] for each in row]
    scales = tuple(each.scale for each in row for _ in range(len(each.lora.pairs[name].a)))
    if len(pairs) == 1:
        return _Part(pairs[0].a, pairs[0].b, scales)
    return _Part(torch.cat([p.a for p in pairs]), torch.cat([p.b for p in pairs], 1), scales)
