from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.worker.models.conftest import DEFAULTS, draw, spec
from worker.errors import InvalidRequest
from worker.models.base import Pipeline
from worker.models.loading import load as loading
from worker.models.loading.random_zimage import byte_tokenizer
from worker.models.loading.sources import TINY, load
from worker.models.prompt_limit import PromptLimit
from worker.models.tokens import chat, chat_limit, whole_limit
from worker.models.whole import WholeCall
from worker.models.zimage.pipeline import ZImageStepwise
from worker.models.zimage.prompt_embeddings import MAX_TOKENS
from worker.settings import Settings


@pytest.fixture(scope="module")
def tiny() -> Pipeline:
    return load(Settings(model="tiny"))


def limit_of(pipeline: Pipeline) -> PromptLimit:
    assert pipeline.info.prompt_limit is not None
    return pipeline.info.prompt_limit


def longest(tokenizer: Any, word: str) -> str:
    """As many ``word`` as the text encoder reads."""
    tokens = [len(tokenizer(chat(tokenizer, word * n)).input_ids) for n in range(600)]
    return word * max(n for n, count in enumerate(tokens) if count <= MAX_TOKENS)


@pytest.mark.parametrize("word", [" red", "红", ", star"])
def test_a_prompt_may_be_as_long_as_the_model_reads_and_no_longer(
    tiny: Pipeline, word: str
) -> None:
    most = longest(AutoTokenizer.from_pretrained(str(TINY / "tokenizer")), word)
    tiny.check(spec(most))
    with pytest.raises(InvalidRequest, match=r"prompt: \d+ tokens; this model reads at most 510"):
        tiny.check(spec(most + word))


def test_the_refusal_names_field_number_limit_and_remedy(tiny: Pipeline) -> None:
    with pytest.raises(InvalidRequest) as refused:
        tiny.check(spec(negative_prompt="红" * 1020, guidance_scale=1.0))
    tokens = limit_of(tiny).tokens("红" * 1020)
    over = -(-100 * (tokens - 510) // tokens)
    wanted = f"negative_prompt: {tokens} tokens; this model reads at most 510: "
    assert str(refused.value) == f"{wanted}shorten it by about {over} %."
    assert (refused.value.param, refused.value.code) == ("negative_prompt", "prompt_too_long")


def test_drawing_never_tells_the_shared_tokenizer_to_cut(small_zimage: Any) -> None:
    """Another thread that counts meanwhile would count what is left."""
    pipeline = loading.adapted(small_zimage, DEFAULTS, 1 << 20)
    pipeline.start([spec("x" * 2000, width=64, height=64)])
    assert small_zimage.tokenizer.backend_tokenizer.truncation is None
    assert limit_of(pipeline).tokens("x" * 2000) == 2000


def test_counting_leaves_a_pipelines_own_tokenizer_alone(stable_diffusion: Any) -> None:
    """It may be cutting a prompt at that moment."""
    pipeline = loading.adapted(stable_diffusion, DEFAULTS, 1 << 20)
    backend = stable_diffusion.tokenizer.backend_tokenizer
    backend.enable_truncation(5)
    assert limit_of(pipeline).tokens("x" * 200) == 200
    assert backend.truncation["max_length"] == 5
    backend.no_truncation()


def test_many_prompts_are_counted_together(tiny: Pipeline) -> None:
    texts = ["a red circle"] * 300 + ["红" * 2000] + ["a blue star"] * 300
    ((place, complaint),) = limit_of(tiny).too_long(texts)
    assert place == 300
    assert "this model reads at most 510: shorten it by about" in str(complaint)


def test_a_pipeline_of_another_kind_reads_what_its_tokenizer_says(stable_diffusion: Any) -> None:
    pipeline = loading.adapted(stable_diffusion, DEFAULTS, 1 << 20)
    assert isinstance(pipeline, WholeCall)
    assert limit_of(pipeline).max_tokens == 24
    draw(pipeline, spec("x" * 24))
    pipeline.check(spec("x" * 24))
    with pytest.raises(InvalidRequest, match="prompt: 25 tokens; this model reads at most 24"):
        pipeline.check(spec("x" * 25))


class CLIPLike:
    """With the marks that CLIP puts before and after a text."""

    model_max_length = 77

    def __call__(self, texts: list[str], **_: Any) -> Any:
        return SimpleNamespace(input_ids=[text.split() for text in texts])

    def num_special_tokens_to_add(self) -> int:
        return 2


CLIPLike.__name__ = "CLIPTokenizer"


class Flux:
    """Two tokenizers, as in Flux and Stable Diffusion 3: the second one reads the most."""

    def __init__(self) -> None:
        self.tokenizer = CLIPLike()
        self.tokenizer_2 = byte_tokenizer()

    def __call__(self, prompt: str, max_sequence_length: int = 256) -> None: ...


def test_the_tokenizer_that_reads_most_counts() -> None:
    limit = whole_limit(Flux())
    assert limit is not None
    assert limit.max_tokens == 256
    assert limit.tokens("red") == 3


def test_clips_own_marks_are_taken_off() -> None:
    limit = whole_limit(SimpleNamespace(tokenizer=CLIPLike(), __call__=lambda: None))
    assert limit is not None
    assert limit.max_tokens == 75


def test_a_tokenizer_without_a_limit_refuses_nothing() -> None:
    endless = byte_tokenizer()
    endless.model_max_length = 10**30
    assert whole_limit(SimpleNamespace(tokenizer=endless, __call__=lambda: None)) is None


def test_random_weights_lose_no_words(small_zimage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "random_zimage", lambda *_: small_zimage)
    pipeline = load(Settings(model="random:z-image-turbo"))
    assert isinstance(pipeline, ZImageStepwise)
    assert pipeline.info.prompt_limit is None


def test_words_around_a_prompt_are_no_part_of_it() -> None:
    tokenizer = byte_tokenizer()
    limit = chat_limit(tokenizer, 512)
    around = len(tokenizer(chat(tokenizer, "")).input_ids)
    assert (limit.max_tokens, limit.tokens("red")) == (512 - around, 3)
