"""The tokenizer: one token a known word, everything else dropped.

It splits by its vocabulary instead of by spaces, so that Chinese needs no segmenter. The chat
template puts a start token before and an end token after the prompt: so does an empty prompt get
tokens.
"""

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tinymodel.captions import VOCABULARY, pattern

PAD, UNKNOWN, START, END = "<|pad|>", "<|unknown|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (PAD, UNKNOWN, START, END)
MAX_TOKENS = 512  # as many as the pipeline asks for
CHAT_TEMPLATE = (
    "{% for message in messages %}" + START + "{{ message['content'] }}" + END + "{% endfor %}"
)


def build() -> PreTrainedTokenizerFast:
    """The tokenizer as `ZImagePipeline` uses it (chat template, padding on the right)."""
    tokens = {word: number for number, word in enumerate(SPECIAL + VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern()), "removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        padding_side="right",
        model_max_length=MAX_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def encode(tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> list[list[int]]:
    """Token ids of each prompt, unpadded, through the chat template."""
    templated = [f"{START}{prompt}{END}" for prompt in prompts]
    ids: list[list[int]] = tokenizer(templated, padding=False)["input_ids"]
    return ids
