"""Prompts as the transformer sees them."""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F

from worker.pipelines.dense import TOKENS_PER_BUCKET, DenseTransformer, padded
from worker.pipelines.graphs import Graphs

MAX_TOKENS = 512
"""Longer prompts are cut, as by ``ZImagePipeline``."""


def bucket(caption: torch.Tensor) -> int:
    """Captions of one bucket have one length inside the transformer."""
    return len(caption) // TOKENS_PER_BUCKET


class CaptionEncoder:
    """Encodes prompts, each alone, and keeps the latest.

    Alone: then a caption does not depend on which request it came with. ``kept_tokens`` bounds
    what is kept on the device: 16,384 tokens are 126 MB for Z-Image-Turbo in bf16.
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
        self._kept: OrderedDict[tuple[int, ...], torch.Tensor] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def __call__(self, prompt: str) -> torch.Tensor:
        """padded tokens × width of the transformer, on the device."""
        tokens = self._tokens(prompt)
        if tokens in self._kept:
            self.hits += 1
        else:
            self.misses += 1
            caption = self._encode(tokens)
            self._make_room(len(caption))
            self._kept[tokens] = caption
        self._kept.move_to_end(tokens)
        return self._kept[tokens]

    def _tokens(self, prompt: str) -> tuple[int, ...]:
        tokenizer = self._pipeline.tokenizer
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
        )
        return tuple(tokenizer(text, truncation=True, max_length=MAX_TOKENS).input_ids)

    def _encode(self, tokens: tuple[int, ...]) -> torch.Tensor:
        count = torch.tensor(len(tokens), device=self._device)
        if self._graphs is None:  # unpadded: three times as fast on a CPU
            return self._caption(torch.tensor(tokens, device=self._device), count)
        length = padded(len(tokens))
        filled = torch.tensor(tokens + tokens[-1:] * (length - len(tokens)), device=self._device)
        return self._graphs(("caption", length), self._caption, filled, count)

    def _caption(self, tokens: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        """Only the first ``count`` of ``tokens`` are the prompt's."""
        hidden = self._hidden(tokens)
        hidden = F.pad(hidden, (0, 0, 0, padded(len(hidden)) - len(hidden)))
        return self._transformer.caption(hidden, count)

    def _hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        encoder = self._pipeline.text_encoder
        # Its own mask is looked up with the CPU waiting; the layers mask the future without it.
        mask = {"full_attention": None} if _looks_back_only(encoder) else None
        states = encoder(
            input_ids=tokens[None], attention_mask=mask, use_cache=False, output_hidden_states=True
        ).hidden_states
        hidden: torch.Tensor = states[-2][0]
        return hidden

    def _make_room(self, tokens: int) -> None:
        while self._kept and sum(map(len, self._kept.values())) + tokens > self._room:
            self._kept.popitem(last=False)


def _looks_back_only(encoder: Any) -> bool:
    """No token sees a later one, so padding at the end changes nothing before it."""
    return type(encoder).__name__ == "Qwen3Model" and not encoder.has_sliding_layers
