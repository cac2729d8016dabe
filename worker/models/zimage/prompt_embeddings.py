"""Prompts as the transformer sees them."""

import itertools
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from worker.models.acceleration.graphs import Graphs
from worker.models.tokens import chat
from worker.models.zimage.dense import TOKENS_PER_BUCKET, DenseTransformer, padded
from worker.models.zimage.low_rank import Row, key_of

MAX_TOKENS = 512
"""With what stands around a prompt, as in ``ZImagePipeline``. Longer ones are refused before; those
of random weights, whose tokenizer makes a token of each byte, are cut."""

_TOGETHER = 256
"""Tokens of the prompts that share a call, which mostly waits for the encoder's weights."""

Tokens = tuple[int, ...]
_Key = tuple[Tokens, Hashable]


def bucket(caption: torch.Tensor) -> int:
    """Captions of one bucket have one length inside the transformer."""
    return len(caption) // TOKENS_PER_BUCKET


class PromptEncoder:
    """Encodes prompts and keeps the latest.

    Through graphs those of one length go together, always as many rows, with copies where there
    are too few: then a caption does not depend on which requests it came with. ``kept_tokens``
    bounds what is kept on the device: 16,384 tokens are 126 MB for Z-Image-Turbo in bf16.
    """

    def __init__(
        self,
        pipeline: Any,
        transformer: DenseTransformer,
        graphs: Graphs | None = None,
        kept_tokens: int = 16_384,
    ) -> None:
        self._pipeline = pipeline
        self._transformer = transformer
        self._device: torch.device = pipeline.transformer.device
        self._graphs = graphs if _looks_back_only(pipeline.text_encoder) else None
        self._room = kept_tokens
        self._kept: OrderedDict[_Key, torch.Tensor] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def __call__(
        self, prompts: Sequence[str], loras: Sequence[Row] | None = None
    ) -> list[torch.Tensor]:
        """padded tokens × width of the transformer for each, on the device. ``loras``: the adapters
        of each that change it."""
        loras = [()] * len(prompts) if loras is None else loras
        asked = [(self._tokens(p), key_of(row)) for p, row in zip(prompts, loras, strict=True)]
        rows = dict(zip(asked, loras, strict=True))
        new = [key for key in rows if key not in self._kept]
        self.hits += len(asked) - len(new)
        self.misses += len(new)
        plain = [key for key in new if not rows[key]]
        encoded = self._encoded([tokens for tokens, _ in plain])
        self._kept.update(zip(plain, encoded, strict=True))
        self._kept.update({key: self._adapted(key[0], rows[key]) for key in new if rows[key]})
        for key in asked:
            self._kept.move_to_end(key)
        captions = [self._kept[key] for key in asked]
        self._make_room()
        return captions

    def _adapted(self, tokens: Tokens, row: Row) -> torch.Tensor:
        """By itself, and through no graph."""
        with self._transformer.adapted([row]):
            return self._captions(*self._rows([tokens], len(tokens)))[0]

    def _tokens(self, prompt: str) -> Tokens:
        tokenizer = self._pipeline.tokenizer
        # Cut here: a tokenizer that is told to cut must not count for other threads meanwhile.
        return tuple(tokenizer(chat(tokenizer, prompt), verbose=False).input_ids[:MAX_TOKENS])

    def _encoded(self, prompts: Sequence[Tokens]) -> list[torch.Tensor]:
        if self._graphs is None:  # unpadded: three times as fast on a CPU
            return [self._captions(*self._rows([tokens], len(tokens)))[0] for tokens in prompts]
        found: dict[Tokens, torch.Tensor] = {}
        for length, rows, part in _calls(prompts):
            inputs = self._rows(part + part[-1:] * (rows - len(part)), length)
            captions = self._graphs(("captions", length), self._captions, *inputs)
            # Clones: a row would keep the memory of all.
            found |= {tokens: row.clone() for tokens, row in zip(part, captions, strict=False)}
        return [found[tokens] for tokens in prompts]

    def _rows(self, prompts: Sequence[Tokens], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens, rows × ``length``, and how many of each row are the prompt's."""
        filled = [tokens + tokens[-1:] * (length - len(tokens)) for tokens in prompts]
        counts = [len(tokens) for tokens in prompts]
        return torch.tensor(filled, device=self._device), torch.tensor(counts, device=self._device)

    def _captions(self, tokens: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Of each row only the first ``counts`` tokens are the prompt's."""
        hidden = self._hidden(tokens)
        length = hidden.shape[1]
        hidden = F.pad(hidden, (0, 0, 0, padded(length) - length))
        return self._transformer.captions(hidden, counts)

    def _hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """rows × tokens × features."""
        encoder = self._pipeline.text_encoder
        # Its own mask is looked up with the CPU waiting; the layers mask the future without it.
        mask = {"full_attention": None} if _looks_back_only(encoder) else None
        states = encoder(
            input_ids=tokens, attention_mask=mask, use_cache=False, output_hidden_states=True
        ).hidden_states
        hidden: torch.Tensor = states[-2]
        return hidden

    def _make_room(self) -> None:
        while len(self._kept) > 1 and sum(map(len, self._kept.values())) > self._room:
            self._kept.popitem(last=False)


def _calls(prompts: Sequence[Tokens]) -> Iterator[tuple[int, int, list[Tokens]]]:
    """Padded length, rows, and at most so many prompts of that length."""
    for length, group in itertools.groupby(sorted(prompts, key=_length), _length):
        rows, left = max(1, _TOGETHER // length), list(group)
        for start in range(0, len(left), rows):
            yield length, rows, left[start : start + rows]


def _length(tokens: Tokens) -> int:
    return padded(len(tokens))


def _looks_back_only(encoder: Any) -> bool:
    """No token sees a later one, so padding at the end changes nothing before it."""
    return type(encoder).__name__ == "Qwen3Model" and not encoder.has_sliding_layers
