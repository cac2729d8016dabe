"""Adapters of the rows of a batch: to the outputs of linear layers is added what each row's say.

y += s (x Aᵀ) Bᵀ, with A and B of the rows stacked and filled up with zeros to the largest rank,
so that rows with different adapters, and with none, share a step (as Punica and S-LoRA do it for
language models). No weight is changed: a batch without adapters runs what it would run.
"""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from worker.models.loras.conversion import Pair
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
    modules, places = dict(model.named_modules()), _Places()
    deltas = {name: _delta(name, rows, places) for name in sorted(names)}
    handles = [modules[name].register_forward_hook(delta) for name, delta in deltas.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Part(NamedTuple):
    """Of a row at one layer: what its adapters say there, each with its scale."""

    pairs: tuple[Pair, ...]
    scales: tuple[float, ...]

    @property
    def rank(self) -> int:
        return sum(len(pair.a) for pair in self.pairs)


class _Places:
    """Rows as an index on their device. Most layers ask for the same one, and each copy to a card
    would have the launching thread wait for all that is under way."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], torch.Tensor] = {}

    def __call__(self, places: tuple[int, ...], device: torch.device) -> torch.Tensor:
        if places not in self._known:
            self._known[places] = torch.tensor(places, device=device)
        return self._known[places]


def _delta(name: str, rows: Sequence[Row], places: _Places) -> "_Delta":
    """Of layer ``name``."""
    known: dict[Hashable, _Part] = {}  # rows with the same adapters have the same part
    parts, having = [], []
    for place, row in enumerate(rows):
        if own := tuple(each for each in row if name in each.lora.pairs):
            pairs = tuple(each.lora.pairs[name] for each in own)
            part = _Part(pairs, tuple(each.scale for each in own))
            parts.append(known.setdefault(key_of(own), part))
            having.append(place)
    return _Delta(parts, None if len(having) == len(rows) else tuple(having), places)


class _Delta:
    """A forward hook. ``having``: rows that have a part of ``parts`` each; None: all have."""

    def __init__(
        self, parts: Sequence[_Part], having: tuple[int, ...] | None, places: _Places
    ) -> None:
        self._parts = parts
        self._having = having
        self._places = places

    def __call__(self, module: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> torch.Tensor:
        given: torch.Tensor = inputs[0]
        result: torch.Tensor = output
        wide, sums = (given[:, None], result[:, None]) if given.ndim == 2 else (given, result)
        if self._having is None:
            sums += self._products(wide).to(sums.dtype)
        else:
            at = self._places(self._having, wide.device)
            sums.index_add_(0, at, self._products(wide[at]).to(sums.dtype))
        return result

    def _products(self, rows: torch.Tensor) -> torch.Tensor:
        first = self._parts[0]
        rows = rows.to(first.pairs[0].a.dtype)
        if all(part is first for part in self._parts):  # nothing to stack
            each = zip(first.pairs, first.scales, strict=True)
            products = [(rows @ a.T) * scale @ b.T for (a, b), scale in each]
            return torch.stack(products).sum(0) if len(products) > 1 else products[0]
        rank = max(part.rank for part in self._parts)
        a = rows.new_zeros(len(rows), rank, rows.shape[-1])
        b = rows.new_zeros(len(rows), len(first.pairs[0].b), rank)
        for place, part in enumerate(self._parts):
            at = 0
            for pair, scale in zip(part.pairs, part.scales, strict=True):
                end = at + len(pair.a)
                torch.mul(pair.a, scale, out=a[place, at:end])
                b[place, :, at:end] = pair.b
                at = end
        return torch.bmm(torch.bmm(rows, a.mT), b.mT)
