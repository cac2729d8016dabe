"""Decoding a picture part by part, where the whole one does not fit the memory.

Two things of a decoder look beyond a part. Convolutions see a few cells past its edge: so each part
is decoded with a margin, which is cut off. Group norms see the mean and the variance of the whole
picture: so all parts are decoded as far as the first norm that does not know them yet, again and
again, until all norms do; only then comes a pass that gives pixels. That is as much work as ten
decodings, and the same picture as a whole one, without seams.

The layers at the latents' own resolution are computed whole: one of them attends to everything.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_WHOLE_BLOCKS = 1
_MARGIN = 16
"""In cells of the first tiled block, of 4 pixels each: twelve would do for three layers a block."""


class NormKnown(Exception):
    """Raised within a part that has told its share of a norm's sums."""


class SharedNorm:
    """The sums of one group norm's inputs over all parts. ``on`` while parts are decoded."""

    def __init__(self, part: "Part") -> None:
        self._part = part
        self.sums: torch.Tensor | None = None
        self.cells = 0
        self.known = False

    @property
    def on(self) -> bool:
        return self._part.inside

    def forget(self) -> None:
        self.sums, self.cells, self.known = None, 0, False

    def core(self, image: torch.Tensor) -> torch.Tensor:
        """What of ``image`` is the part itself, without its margin."""
        return self._part.core(image)

    def tell(self, sums: torch.Tensor, cells: int) -> None:
        """Sums and sums of squares of the core (2 × channels, fp32), and ends the part's pass."""
        self.sums = sums if self.sums is None else self.sums + sums
        self.cells += cells
        raise NormKnown


class Part:
    """Where in the first tiled block's inputs the present part lies."""

    def __init__(self) -> None:
        self.inside = False
        self._height = 0  # with its margin
        self._core = (slice(None), slice(None))

    def enter(self, height: int, rows: slice, columns: slice) -> None:
        self.inside, self._height, self._core = True, height, (rows, columns)

    def leave(self) -> None:
        self.inside = False

    def core(self, image: torch.Tensor) -> torch.Tensor:
        scale = image.shape[2] // self._height
        rows, columns = (slice(c.start * scale, c.stop * scale) for c in self._core)
        return image[:, :, rows, columns]


class TiledDecoder:
    """Of diffusers' ``AutoencoderKL``; it changes nothing while whole pictures are decoded."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._tail = decoder.up_blocks[_WHOLE_BLOCKS:]
        self._part = Part()
        self._norms: list[SharedNorm] = []
        for module in (*self._tail, decoder.conv_norm_out):
            for norm in module.modules():
                if isinstance(norm, torch.nn.GroupNorm):
                    self._share(norm)

    def _share(self, norm: torch.nn.GroupNorm) -> None:
        # Kernels of ours ask for ``shared``; the norm itself is called only without them.
        before = getattr(norm, "shared_hook", None)
        if before is not None:
            before.remove()
        norm.shared = SharedNorm(self._part)  # type: ignore[assignment]
        norm.shared_hook = norm.register_forward_hook(_shared)  # type: ignore[assignment]
        self._norms.append(norm.shared)  # type: ignore[arg-type]

    def __call__(self, latents: torch.Tensor, side: int) -> torch.Tensor:
        """As the decoder, of 1 × channels × height / 8 × width / 8, in parts of ``side`` pixels."""
        decoder = self._decoder
        hidden = decoder.mid_block(decoder.conv_in(latents))
        for block in decoder.up_blocks[:_WHOLE_BLOCKS]:
            hidden = block(hidden)
        scale = 2 ** (len(self._tail) - 1)
        for norm in self._norms:
            norm.forget()
        while True:
            output = self._pass(hidden, side // scale, scale)
            if output is not None:
                return output
            for norm in self._norms:
                norm.known = norm.sums is not None

    def _pass(self, hidden: torch.Tensor, side: int, scale: int) -> torch.Tensor | None:
        """The picture; None where a norm got to know its sums instead."""
        output: torch.Tensor | None = None
        height, width = hidden.shape[2:]
        for rows, rows_around in _cuts(height, side):
            for columns, columns_around in _cuts(width, side):
                with self._inside(rows, rows_around, columns, columns_around):
                    try:
                        tile = self._tailed(hidden[:, :, rows_around, columns_around])
                    except NormKnown:
                        continue
                    tile = self._part.core(tile)
                    if output is None:
                        size = 1, tile.shape[1], height * scale, width * scale
                        output = torch.empty(size, dtype=tile.dtype, device=tile.device)
                    output[:, :, _scaled(rows, scale), _scaled(columns, scale)] = tile
        return output

    @contextmanager
    def _inside(
        self, rows: slice, rows_around: slice, columns: slice, columns_around: slice
    ) -> Iterator[None]:
        core = (
            slice(inner.start - outer.start, inner.stop - outer.start)
            for inner, outer in ((rows, rows_around), (columns, columns_around))
        )
        self._part.enter(rows_around.stop - rows_around.start, *core)
        try:
            yield
        finally:
            self._part.leave()

    def _tailed(self, hidden: torch.Tensor) -> torch.Tensor:
        decoder = self._decoder
        for block in self._tail:
            hidden = block(hidden)
        output: torch.Tensor = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(hidden)))
        return output


def _shared(norm: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor | None:
    """A forward hook of a group norm; None: ``output`` stays."""
    shared: SharedNorm = norm.shared
    if not shared.on:
        return None
    (image,) = inputs
    if not shared.known:
        core = shared.core(image).float()
        sums = torch.stack([core.sum((0, 2, 3)), core.square().sum((0, 2, 3))])
        shared.tell(sums, core.shape[2] * core.shape[3])
    assert shared.sums is not None
    groups = shared.sums.view(2, norm.num_groups, -1).sum(-1)
    count = shared.cells * (image.shape[1] // norm.num_groups)
    mean, square = groups / count
    factor = torch.rsqrt(square - mean * mean + norm.eps)
    each = image.shape[1] // norm.num_groups
    weight = norm.weight.float() * factor.repeat_interleave(each)
    bias = norm.bias.float() - mean.repeat_interleave(each) * weight
    shape = (1, -1, 1, 1)
    normed: torch.Tensor = image.float() * weight.view(shape) + bias.view(shape)
    return normed.to(output.dtype)


def _cuts(total: int, side: int) -> Iterator[tuple[slice, slice]]:
    """Parts of at most ``side``, as equal as can be; each by itself and with its margin."""
    count = -(-total // side)
    for number in range(count):
        start, stop = total * number // count, total * (number + 1) // count
        yield slice(start, stop), slice(max(0, start - _MARGIN), min(total, stop + _MARGIN))


def _scaled(part: slice, scale: int) -> slice:
    return slice(part.start * scale, part.stop * scale)
