"""Z-Image's transformer for rows that all have one size and one length.

``ZImageTransformer2DModel.forward`` takes lists, pads each row on its own and looks up positions
at every step: about 60 launches a row that this spares. The layers are the model's own, called in
the same order with the same numbers.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from worker.models.acceleration.graphs import MOST_PIXELS, Graphs
from worker.models.zimage.low_rank import Row, added
from worker.models.zimage.rotary import real_table

TOKENS_PER_BUCKET = 32
"""The model pads text and picture to multiples of this with tokens that are attended to."""
PATCH = 2
PATCH_KEY = "2-1"
_PIXELS_PER_CELL = 64
_KEPT_TABLES = 32  # 2 MB each at 1024²


class DenseTransformer:
    """``graphs``: None where there are none to use. ``kernels``: ours, of ``fused``, instead of the
    layers' own operations, and ``ways`` are what its ``blocks`` takes besides. ``backend``: of
    attention; None: torch chooses."""

    def __init__(
        self,
        transformer: Any,
        graphs: Graphs | None = None,
        *,
        kernels: bool = False,
        ways: Mapping[str, Any] | None = None,
        backend: SDPBackend | None = None,
    ) -> None:
        self._model = transformer
        self._backend = backend
        self._layers = self._usual_layers = _layers(kernels, ways or {})
        # What goes around the layers' own calls knows nothing of adapters.
        plain = {name: way for name, way in (ways or {}).items() if name == "attend"}
        self._adapted_layers = _layers(kernels, plain)
        self._graphs = graphs
        self._tables: OrderedDict[tuple[int, int, int], torch.Tensor] = OrderedDict()
        self._text_tables: dict[int, torch.Tensor] = {}  # a graph may read each: none ever goes

    @contextmanager
    def adapted(self, rows: Sequence[Row]) -> Iterator[None]:
        """While it lasts, calls with a batch of these ``rows`` are with their adapters: through
        the layers themselves, and through no graph, whose recording would keep the tensors."""
        graphs, self._graphs, self._layers = self._graphs, None, self._adapted_layers
        try:
            with added(self._model, rows):
                yield
        finally:
            self._graphs, self._layers = graphs, self._usual_layers

    def captions(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """What the layers see of prompts: rows × padded tokens × width, the same at every step.

        ``hidden``: rows × padded tokens × features; of each row the first ``tokens`` count.
        """
        length = hidden.shape[1]
        padding = torch.arange(length, device=hidden.device) >= tokens[:, None]
        embedded: torch.Tensor = self._model.cap_embedder(hidden)
        embedded = torch.where(padding[..., None], self._model.cap_pad_token, embedded)
        table = self._text_table(length)
        return self._layers(self._model.context_refiner, embedded, table, None)

    def __call__(
        self, latents: torch.Tensor, times: torch.Tensor, captions: torch.Tensor
    ) -> torch.Tensor:
        """The model's output for each row, fp32, shaped as ``latents``.

        ``latents``: rows × channels × height / 8 × width / 8 in the model's dtype; ``times``: one
        a row; ``captions``: rows × padded tokens × width, from ``captions``.
        """
        rows, _, height, width = latents.shape
        table = self._table(height // PATCH, width // PATCH, captions.shape[1])

        def core(*rows_of: torch.Tensor) -> torch.Tensor:
            latents, times, captions = rows_of
            with self._attention():
                return self._core(latents, times, captions, table)

        if self._graphs is None or rows * height * width * _PIXELS_PER_CELL > MOST_PIXELS:
            return core(latents, times, captions)
        key = ("step", tuple(latents.shape), captions.shape[1])
        return self._graphs(key, core, latents, times, captions)

    def _core(
        self,
        latents: torch.Tensor,
        times: torch.Tensor,
        captions: torch.Tensor,
        table: torch.Tensor,
    ) -> torch.Tensor:
        model = self._model
        time = model.t_embedder(times * model.t_scale).type_as(latents)
        patches = patches_of(latents)
        tokens = model.all_x_embedder[PATCH_KEY](patches)
        if padding := -patches.shape[1] % TOKENS_PER_BUCKET:
            tokens = torch.cat([tokens, model.x_pad_token.expand(len(latents), padding, -1)], 1)
        tokens = self._layers(model.noise_refiner, tokens, table[: tokens.shape[1]], time)
        tokens = torch.cat([tokens, captions], 1)
        tokens = self._layers(model.layers, tokens, table, time)
        output = model.all_final_layer[PATCH_KEY](tokens[:, : patches.shape[1]], c=time)
        return unpatched(output, latents.shape).float()

    def _attention(self) -> AbstractContextManager[object]:
        return nullcontext() if self._backend is None else sdpa_kernel(self._backend)

    def _text_table(self, text: int) -> torch.Tensor:
        if text not in self._text_tables:
            self._text_tables[text] = self._angles(_positions(0, 0, text))
        return self._text_tables[text]

    def _table(self, height: int, width: int, text: int) -> torch.Tensor:
        """Angles of ``height`` × ``width`` patches, padded, and then of ``text`` tokens."""
        key = (height, width, text)
        if key not in self._tables:
            if len(self._tables) >= _KEPT_TABLES:
                self._tables.popitem(last=False)
            self._tables[key] = self._angles(_positions(height, width, text))
        self._tables.move_to_end(key)
        return self._tables[key]

    def _angles(self, positions: torch.Tensor) -> torch.Tensor:
        frequencies = self._model.rope_embedder(positions.to(self._model.device))
        return real_table(frequencies).contiguous()


def _layers(kernels: bool, ways: Mapping[str, Any]) -> Callable[..., torch.Tensor]:
    return partial(fused_layers, **ways) if kernels else own_layers


def own_layers(
    layers: Iterable[Any], tokens: torch.Tensor, table: torch.Tensor, time: torch.Tensor | None
) -> torch.Tensor:
    for layer in layers:
        tokens = layer(tokens, None, table, time)
    return tokens


def fused_layers(
    layers: Sequence[Any],
    tokens: torch.Tensor,
    table: torch.Tensor,
    time: torch.Tensor | None,
    **ways: Any,
) -> torch.Tensor:
    from worker.models.acceleration import fused  # Triton is on machines with a GPU only

    return fused.blocks(layers, tokens, table, time, **ways)


def padded(tokens: int) -> int:
    """``tokens``, rounded up as the model pads them."""
    return -(-tokens // TOKENS_PER_BUCKET) * TOKENS_PER_BUCKET


def _positions(height: int, width: int, text: int) -> torch.Tensor:
    """Tokens × (frame, row, column): text on frames 1 …, the picture on the one after it."""
    picture = torch.cartesian_prod(
        torch.tensor([text + 1]), torch.arange(height), torch.arange(width)
    )
    padding = torch.zeros(padded(len(picture)) - len(picture), 3, dtype=torch.int64)
    line = torch.arange(1, text + 1)
    words = torch.stack([line, torch.zeros_like(line), torch.zeros_like(line)], dim=1)
    return torch.cat([picture, padding, words])


def patches_of(latents: torch.Tensor) -> torch.Tensor:
    """rows × patches × (patch height, patch width, channels)."""
    rows, channels, height, width = latents.shape
    cells = latents.view(rows, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(rows, -1, PATCH * PATCH * channels)


def unpatched(patches: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    rows, channels, height, width = shape
    cells = patches.view(rows, height // PATCH, width // PATCH, PATCH, PATCH, channels)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(shape)
