from typing import Any

import pytest
import torch

from worker.pipelines.captions import MAX_TOKENS, CaptionEncoder, bucket

CPU = torch.device("cpu")


@pytest.fixture
def encoded(small_zimage: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Prompts that reach the text encoder."""
    prompts: list[str] = []
    encode = small_zimage.encode_prompt

    def counting(prompt: list[str], **options: Any) -> Any:
        prompts.extend(prompt)
        return encode(prompt, **options)

    monkeypatch.setattr(small_zimage, "encode_prompt", counting)
    return prompts


def test_a_caption_equals_the_pipelines_padded_one(small_zimage: Any) -> None:
    with torch.no_grad():
        caption = CaptionEncoder(small_zimage, CPU)("a red circle")
        (padded,), _ = small_zimage.encode_prompt(
            ["a red circle"], do_classifier_free_guidance=False
        )
    assert caption.shape == padded.shape
    assert torch.allclose(caption, padded, atol=1e-5)


def test_long_prompts_are_cut(small_zimage: Any) -> None:
    with torch.no_grad():
        caption = CaptionEncoder(small_zimage, CPU)("long " * 300)
    assert len(caption) == MAX_TOKENS


@torch.no_grad()
def test_the_least_recently_used_makes_room(small_zimage: Any, encoded: list[str]) -> None:
    encoder = CaptionEncoder(small_zimage, CPU)
    encoder._room = len(encoder("1")) + len(encoder("2"))
    for prompt in ("1", "3", "1", "2"):
        encoder(prompt)
    assert encoded == ["1", "2", "3", "2"]


@torch.no_grad()
def test_a_prompt_over_the_bound_is_still_encoded(small_zimage: Any, encoded: list[str]) -> None:
    encoder = CaptionEncoder(small_zimage, CPU, kept_tokens=1)
    encoder("a")
    encoder("b")
    assert len(encoder._kept) == 1
    assert encoded == ["a", "b"]


def test_buckets_are_multiples_of_32() -> None:
    lengths = (1, 32, 33, 512)
    assert [bucket(torch.zeros(length, 4)) for length in lengths] == [1, 1, 2, 16]
