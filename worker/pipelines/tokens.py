"""Counts the tokens of prompts as a pipeline's own tokenizer makes them, beside its drawing."""

import copy
import inspect
import threading
from collections.abc import Sequence
from typing import Any

from worker.pipelines.prompt_limit import PromptLimit

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
    lock = threading.Lock()

    def count(prompts: Sequence[str]) -> list[int]:
        with lock:
            return _counts(own, prompts, add_special_tokens=False)

    return PromptLimit(most - tokenizer.num_special_tokens_to_add(), count)


def _is_clip(tokenizer: Any) -> bool:
    return type(tokenizer).__name__.startswith("CLIP")


def _counts(tokenizer: Any, texts: Sequence[str], **options: bool) -> list[int]:
    # Not verbose: it would warn of what is too long, which is asked here.
    return [len(ids) for ids in tokenizer(list(texts), verbose=False, **options).input_ids]
