from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from worker.pipelines import levers
from worker.pipelines.captions import MAX_TOKENS, CaptionEncoder, bucket
from worker.pipelines.dense import DenseTransformer


@pytest.fixture
def encoder(small_zimage: Any) -> Iterator[CaptionEncoder]:
    levers.apply(levers.NONE, small_zimage)
    with torch.no_grad():
        yield CaptionEncoder(small_zimage, DenseTransformer(small_zimage.transformer))


@contextmanager
def encoded(pipeline: Any) -> Iterator[list[int]]:
    """Numbers of tokens that reach the text encoder."""
    lengths: list[int] = []
    hook = pipeline.text_encoder.register_forward_pre_hook(
        lambda _, __, options: lengths.append(options["input_ids"].shape[1]), with_kwargs=True
    )
    yield lengths
    hook.remove()


def test_hidden_states_equal_the_pipelines_padded_ones(
    encoder: CaptionEncoder, small_zimage: Any
) -> None:
    hidden = encoder._hidden(torch.tensor(encoder._tokens("a red circle")))
    (padded,), _ = small_zimage.encode_prompt(["a red circle"], do_classifier_free_guidance=False)
    assert hidden.shape == padded.shape
    assert torch.allclose(hidden, padded, atol=1e-5)


def test_padding_changes_no_caption(encoder: CaptionEncoder) -> None:
    """As where captions are encoded through graphs, which have a length each."""
    tokens = torch.tensor(encoder._tokens("a red circle"))
    count = torch.tensor(len(tokens))
    plain = encoder._caption(tokens, count)
    filled = encoder._caption(F.pad(tokens, (0, len(plain) - len(tokens)), value=7), count)
    assert len(plain) > len(tokens)
    assert torch.allclose(plain, filled, atol=1e-5)


def test_long_prompts_are_cut(encoder: CaptionEncoder) -> None:
    assert len(encoder("long " * 300)) == MAX_TOKENS


def test_the_least_recently_used_makes_room(encoder: CaptionEncoder, small_zimage: Any) -> None:
    encoder._room = len(encoder("1")) + len(encoder("2"))
    with encoded(small_zimage) as lengths:
        for prompt in ("1", "3", "1", "2"):
            encoder(prompt)
    assert len(lengths) == 2
    assert (encoder.hits, encoder.misses) == (2, 4)


def test_a_prompt_over_the_bound_is_still_encoded(
    encoder: CaptionEncoder, small_zimage: Any
) -> None:
    encoder._room = 1
    with encoded(small_zimage) as lengths:
        encoder("a")
        encoder("b")
    assert len(encoder._kept) == 1
    assert len(lengths) == 2


def test_captions_are_multiples_of_32(encoder: CaptionEncoder) -> None:
    assert bucket(encoder("")) == 1
    assert len(encoder("long " * 20)) % 32 == 0
