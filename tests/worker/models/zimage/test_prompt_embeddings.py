from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from worker.models.acceleration import optimisations
from worker.models.zimage.dense import DenseTransformer
from worker.models.zimage.prompt_embeddings import MAX_TOKENS, PromptEncoder, bucket


@pytest.fixture
def encoder(small_zimage: Any) -> Iterator[PromptEncoder]:
    optimisations.apply(optimisations.NONE, small_zimage)
    with torch.no_grad():
        yield PromptEncoder(small_zimage, DenseTransformer(small_zimage.transformer))


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
    encoder: PromptEncoder, small_zimage: Any
) -> None:
    (hidden,) = encoder._hidden(torch.tensor([encoder._tokens("a red circle")]))
    (padded,), _ = small_zimage.encode_prompt(["a red circle"], do_classifier_free_guidance=False)
    assert hidden.shape == padded.shape
    assert torch.allclose(hidden, padded, atol=1e-5)


PROMPTS = ["a red circle", "一颗星", "long " * 20, "a red circle", "", *"123456789", "much " * 25]


def test_company_and_padding_change_no_caption(encoder: PromptEncoder, small_zimage: Any) -> None:
    """As where captions are encoded through graphs, of which each length has one."""
    alone = [encoder([prompt])[0] for prompt in PROMPTS]
    shapes: list[tuple[object, torch.Size]] = []

    def graphs(key: object, function: Any, *inputs: torch.Tensor) -> torch.Tensor:
        shapes.append((key, inputs[0].shape))
        output: torch.Tensor = function(*inputs)
        return output

    together = PromptEncoder(small_zimage, encoder._transformer, graphs)  # type: ignore[arg-type]
    for caption, wanted in zip(together(PROMPTS), alone, strict=True):
        assert caption.shape == wanted.shape
        assert torch.allclose(caption, wanted, atol=1e-5)
    lengths = {len(caption) for caption in alone}
    assert dict(shapes) == {("captions", n): (256 // n, n) for n in lengths}
    assert len(shapes) > len(lengths) > 1  # some length has more prompts than rows
    assert (together.hits, together.misses) == (1, len(PROMPTS) - 1)


def test_long_prompts_are_cut(encoder: PromptEncoder) -> None:
    assert len(encoder(["long " * 300])[0]) == MAX_TOKENS


def test_the_least_recently_used_makes_room(encoder: PromptEncoder, small_zimage: Any) -> None:
    encoder._room = sum(map(len, encoder(["1", "2"])))
    with encoded(small_zimage) as lengths:
        for prompt in ("1", "3", "1", "2"):
            encoder([prompt])
    assert len(lengths) == 2
    assert (encoder.hits, encoder.misses) == (2, 4)


def test_prompts_over_the_bound_are_still_encoded(
    encoder: PromptEncoder, small_zimage: Any
) -> None:
    encoder._room = 1
    with encoded(small_zimage) as lengths:
        assert len(encoder(["a", "b"])) == 2
    assert len(encoder._kept) == 1
    assert len(lengths) == 2


def test_captions_are_multiples_of_32(encoder: PromptEncoder) -> None:
    short, long = encoder(["", "long " * 20])
    assert bucket(short) == 1
    assert len(long) % 32 == 0
