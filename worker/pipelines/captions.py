"""Prompts as the transformer sees them."""

from collections import OrderedDict
from typing import Any

import torch

TOKENS_PER_BUCKET = 32
"""The transformer pads captions to multiples of this with tokens that are attended to."""
MAX_TOKENS = 512
"""Longer prompts are cut, as by ``ZImagePipeline``."""


def bucket(caption: torch.Tensor) -> int:
    """Captions of one bucket have one length inside the transformer."""
    return -(-len(caption) // TOKENS_PER_BUCKET)


class CaptionEncoder:
    """Encodes prompts, each alone and unpadded, and keeps the latest.

    Alone: then a caption does not depend on which request it came with. ``kept_tokens`` bounds
    what is kept on the device: 16,384 tokens are 84 MB for Z-Image-Turbo in bf16.
    """

    def __init__(self, pipeline: Any, device: torch.device, kept_tokens: int = 16_384) -> None:
        self._pipeline = pipeline
        self._device = device
        self._room = kept_tokens
        self._kept: OrderedDict[tuple[int, ...], torch.Tensor] = OrderedDict()

    def __call__(self, prompt: str) -> torch.Tensor:
        """tokens × features, on the device."""
        tokens = self._tokens(prompt)
        if tokens not in self._kept:
            caption = self._encode(prompt, len(tokens))
            self._make_room(len(tokens))
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

    def _encode(self, prompt: str, tokens: int) -> torch.Tensor:
        captions, _ = self._pipeline.encode_prompt(
            [prompt],  # a list of its own: the pipeline overwrites it
            device=self._device,
            do_classifier_free_guidance=False,
            max_sequence_length=tokens,  # what it pads to
        )
        caption: torch.Tensor = captions[0]
        return caption

    def _make_room(self, tokens: int) -> None:
        while self._kept and sum(map(len, self._kept)) + tokens > self._room:
            self._kept.popitem(last=False)
