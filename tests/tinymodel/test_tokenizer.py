from transformers import AutoTokenizer

from tinymodel import build, tokenizer


def test_shipped_tokenizer_is_the_one_in_the_code() -> None:
    shipped = AutoTokenizer.from_pretrained(build.WEIGHTS / "tokenizer")
    assert shipped.get_vocab() == tokenizer.build().get_vocab()
    assert shipped.chat_template == tokenizer.CHAT_TEMPLATE


def test_chinese_is_split_into_words() -> None:
    words = tokenizer.build()
    ids = tokenizer.encode(words, ["左上角一个红色圆形，白色背景"])[0]
    tokens = words.convert_ids_to_tokens(ids)
    assert tokens[1:-1] == ["左上角", "一个", "红色", "圆形", ",", "白色", "背景"]


def test_unknown_words_leave_no_token() -> None:
    known, padded = tokenizer.encode(tokenizer.build(), ["red circle", "fluffy red 猫 circle!"])
    assert known == padded


def test_empty_prompt_has_start_and_end() -> None:
    assert tokenizer.encode(tokenizer.build(), [""]) == [[2, 3]]


def test_chat_template_is_what_encode_does() -> None:
    words = tokenizer.build()
    message = [{"role": "user", "content": "a red star"}]
    templated = words.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert words(templated)["input_ids"] == tokenizer.encode(words, ["a red star"])[0]
