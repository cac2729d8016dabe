"""Counts the tokens of prompts as a pipeline's own tokenizer makes them, beside its drawing."""

import copy
import inspect
import os
import threading
from collections.abc import Sequence
from typing import Any

from worker.models.prompt_limit import PromptLimit

# Prompts of a large job are counted by one thread: the others draw.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_SENSELESS = 100_000  # tokenizers that know no limit say 10³⁰
_NAMES = ("tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4")


def chat(tokenizer: Any, prompt: str) -> str:
    """``prompt`` as Z-Image's text encoder is asked."""
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=True,
    )
    return text


def chat_limit(tokenizer: Any, max_tokens: int) -> PromptLimit:
    """Of a model that is asked by ``chat`` and reads ``max_tokens`` of that.

    The tokenizer is shared with who draws: as long as nobody asks it to cut or fill, it may be
    used from several threads.
    """
    tokenizer("", verbose=False)  # from now on it neither cuts nor fills
    around = _counts(tokenizer, [chat(tokenizer, "")])[0]

    def count(prompts: Sequence[str]) -> list[int]:
        texts = [chat(tokenizer, prompt) for prompt in prompts]
        return [tokens - around for tokens in _counts(tokenizer, texts)]

    return PromptLimit(max_tokens - around, count)


def whole_limit(pipeline: Any) -> PromptLimit | None:
    """Of the tokenizer that reads most of a prompt: what another one cuts, it still sees.

    None where that cannot be told. Those of CLIP say themselves how much they read; of others it
    is ``max_sequence_length`` of the pipeline's call, if it has that.
    """
    found = [getattr(pipeline, name, None) for name in _NAMES]
    limits = [_limit(tokenizer, pipeline) for tokenizer in found if tokenizer is not None]
    if not limits or None in limits:
        return None
    return max((limit for limit in limits if limit), key=lambda limit: limit.max_tokens)


def _limit(tokenizer: Any, pipeline: Any) -> PromptLimit | None:
    most = tokenizer.model_max_length
    parameter = inspect.signature(pipeline.__call__).parameters.get("max_sequence_length")
    if parameter and isinstance(parameter.default, int) and not _is_clip(tokenizer):
        most = parameter.default
    if most > _SENSELESS:
        return None
    own = copy.deepcopy(tokenizer)  # the pipeline tells its own to cut and fill, while it draws
    own("", verbose=False)
    lock = threading.Lock()

    def count(prompts: Sequence[str]) -> list[int]:
        with lock:
            return _counts(own, prompts, add_special_tokens=False)

    return PromptLimit(most - tokenizer.num_special_tokens_to_add(), count)


def _is_clip(tokenizer: Any) -> bool:
    return type(tokenizer).__name__.startswith("CLIP")


def _counts(tokenizer: Any, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[int]:
    """With the library beneath, which lets other threads go on: transformers' own objects of ten
    thousand prompts took five times as long and held them up for a tenth of a second."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        found = tokenizer(list(texts), add_special_tokens=add_special_tokens, verbose=False)
        return [len(ids) for ids in found.input_ids]
    encoded = backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
    return [len(one) for one in encoded]
