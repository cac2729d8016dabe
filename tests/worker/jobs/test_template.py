import contextlib
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import InvalidRequest
from worker.jobs.template import Bounds, Table, expand

MIB = 1 << 20
TABLE = {"product": ["tea", "coffee"], "颜色": ["红", "蓝"]}


def within(prompts: int, prompt_chars: int = 4000, total_chars: int = MIB) -> Bounds:
    return Bounds(prompts, prompt_chars, total_chars)


@pytest.mark.parametrize(
    ("template", "table", "prompts"),
    [
        ("a hill", {}, ["a hill"]),
        ("a {red|blue} hill", {}, ["a red hill", "a blue hill"]),
        ("{a|b} {c|d}", {}, ["a c", "a d", "b c", "b d"]),
        ("{a|b{1|2}c|}", {}, ["a", "b1c", "b2c", ""]),
        ("{p} or {p}", {"p": ["x", "y"]}, ["x or x", "y or y"]),
        ("{ p }", {"p": ["x"]}, ["x"]),
        ("{big {p}|small}", {"p": ["x", "y"]}, ["big x", "big y", "small"]),
        ("{{p}|no {p}}{p}", {"p": ["x", "y"]}, ["xx", "yy", "no xx", "no yy"]),
        ("{p|q}", {}, ["p", "q"]),
        (r"\{a\|b\} \\ \n", {}, [r"{a|b} \ \n"]),
        ("one | two", {}, ["one | two"]),
        ("{红|蓝}色的{物}", {"物": ["山"]}, ["红色的山", "蓝色的山"]),
        ("{p}", {"p": ["{red|blue}"]}, ["{red|blue}"]),
    ],
)
def test_template_stands_for_these_prompts(
    template: str, table: dict[str, list[str]], prompts: list[str]
) -> None:
    assert expand(template, table, within(100)) == prompts


@pytest.mark.parametrize(
    ("template", "param", "why"),
    [
        ("a {red|blue", "template", "character 3: this { is not closed"),
        ("a red|blue}", "template", "character 11: this } closes nothing"),
        ("a {}", "template", "character 3: these braces hold neither choices"),
        ("a {deep red}", "template", "character 3: these braces hold neither choices"),
        ("a {thing}", "template", "no variable 'thing' in variables (product, 颜色)"),
        ("{product}", "variables.颜色", "does not use it: write {颜色}"),
        ("{a|b}" * 65, "template", "more than 64 braces"),
        ("{a|" * 9 + "}" * 9, "template", "more than 8 deep"),
        ("{a|b}{c|d}{e|f}{product}{颜色}", "template", "more than 31 prompts"),
    ],
)
def test_what_is_wrong_and_where(template: str, param: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(why)) as raised:
        expand(template, TABLE, within(31))
    assert raised.value.param == param


@pytest.mark.parametrize(
    ("template", "details"),
    [
        ("a {red", {"reason": "brace_open", "at": 3}),
        ("a red} b", {"reason": "brace_closes_nothing", "at": 6}),
        ("a {} b", {"reason": "brace_no_name", "at": 3}),
        ("{a|b}{c|d}", {"reason": "too_many_prompts", "most": 3}),
        ("{a|bcdef}", {"reason": "prompt_chars", "most": 4}),
    ],
)
def test_what_is_wrong_can_be_said_in_words_of_ones_own(
    template: str, details: dict[str, object]
) -> None:
    with pytest.raises(InvalidRequest) as raised:
        expand(template, {}, within(3, prompt_chars=4 if "bcdef" in template else 4000))
    assert raised.value.details == details


def test_no_number_of_choices_takes_long() -> None:
    with pytest.raises(InvalidRequest, match="more than 10000 prompts"):
        expand("{a|b}" * 64, {}, within(10_000))


LONG = {"p": ["x" * 50_000, "y" * 50_000]}


@pytest.mark.parametrize(
    ("template", "table", "why"),
    [
        ("{p}" + "{a|b}" * 13, LONG, "a prompt that it makes has more than 4000 characters"),
        ("{a|b}" * 13 + "{p}", LONG, "a prompt that it makes has more than 4000 characters"),
        ("{p}" * 64, {"p": ["x" * 400]}, "a prompt that it makes has more than 4000 characters"),
        ("{a|b}" * 13 + "{p}", {"p": ["x" * 3900]}, "have more than 1048576 characters together"),
        ("{|}" * 64, {}, "more than 10000 prompts"),
        ("{{|}{|}|}" * 21, {}, "more than 10000 prompts"),
        ("{" + "|" * 6000 + "}{|}", {}, "more than 10000 prompts"),
    ],
)
def test_what_is_too_much_is_never_built(template: str, table: Table, why: str) -> None:
    bounds = Bounds(10_000, 4000, MIB)
    # A prompt of n letters and the list's own place for it take n + 60 bytes.
    most = bounds.total_chars + 60 * bounds.prompts + MIB
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match=why):
            expand(template, table, bounds)
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@given(st.text(alphabet="{|}\\ab", max_size=60))
def test_any_text_expands_or_is_refused(template: str) -> None:
    with contextlib.suppress(InvalidRequest):
        assert expand(template, {}, within(50))


@given(st.text(max_size=60))
def test_escaped_text_stands_for_itself(text: str) -> None:
    escaped = re.sub(r"([{|}\\])", r"\\\1", text)
    assert expand(escaped, {}, within(1)) == [text]
