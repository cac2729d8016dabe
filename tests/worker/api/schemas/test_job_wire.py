import json
import tracemalloc
from typing import Any

import pytest

from worker.api.schemas import job_wire
from worker.errors import InvalidRequest
from worker.models.synthetic import SyntheticPipeline
from worker.settings import Settings
from worker.storage.jobs import JobSpec
from worker.types import Parameters

SETTINGS = Settings(max_prompt_chars=30)


def parse(**fields: Any) -> JobSpec:
    return job_wire.parse(json.dumps(fields).encode(), SETTINGS, SyntheticPipeline().info, 77)


def test_a_list_of_prompts_with_variants() -> None:
    wish = parse(prompts=["a", "b"], variants=2, seed=5, size="256x128", name="two")
    assert wish.prompts == ("a", "a", "b", "b")
    assert (wish.first_seed, wish.parameters) == (5, Parameters(256, 128, 8))
    assert (wish.name, wish.priority, wish.output_format) == ("two", 1, "png")


def test_a_template_with_variables() -> None:
    wish = parse(template="{red|blue} {p}", variables={"p": ["tea"]}, priority="interactive")
    assert wish.prompts == ("red tea", "blue tea")
    assert (wish.first_seed, wish.priority) == (77, 0)


def test_words_of_other_apis_mean_the_same_job() -> None:
    own = parse(prompts=["a"], size="128x64", steps=3, output_format="jpeg")
    theirs = parse(
        prompts=["a"], width=128, height=64, num_inference_steps=3, output_format="jpg", seed=-1
    )
    assert theirs == own


def test_digest_tells_wishes_apart_and_knows_resubmissions() -> None:
    assert parse(prompts=["a"], seed=1).digest == parse(seed=1, name=None, prompts=["a"]).digest
    assert parse(prompts=["a"], seed=1).digest != parse(prompts=["a"], seed=2).digest


@pytest.mark.parametrize(
    ("fields", "param", "why"),
    [
        ({}, "prompts", "missing: give either"),
        ({"prompts": ["a"], "template": "b"}, "prompts", "given beside template"),
        ({"prompts": []}, "prompts", "the list is empty"),
        ({"prompts": "a"}, "prompts", "must be a list, not text"),
        ({"prompts": ["a", " "]}, "prompts[1]", "empty: say what to draw"),
        ({"prompts": ["a", 3]}, "prompts[1]", "must be text, not a number"),
        ({"prompts": ["x" * 31]}, "prompts[0]", "31 characters; at most 30"),
        ({"prompts": ["a"] * 10_001}, "prompts", "10001 of them; at most 10000"),
        ({"prompts": ["a"] * 6000, "variants": 2}, "variants", "are 12000 pictures"),
        ({"prompts": ["a"], "variables": {}}, "variables", "belong to a template"),
        ({"template": "{a"}, "template", "character 1"),
        ({"template": "{p}" * 9, "variables": {"p": ["long"]}}, "template", "more than 30"),
        ({"template": "{p}", "variables": ["p"]}, "variables", "object of lists, not a list"),
        ({"template": "{p}", "variables": {"p": "x"}}, "variables.p", "must be a list"),
        ({"template": "{p}", "variables": {"p": []}}, "variables.p", "the list is empty"),
        ({"template": "{p}", "variables": {"p": [1]}}, "variables.p[0]", "must be text"),
        ({"template": "x", "variables": {"a b": ["1"]}}, "variables.a b", "is no name"),
        ({"template": "{p}", "variables": {"p": ["x" * 31]}}, "variables.p[0]", "at most 30"),
        ({"template": "{p}", "variables": {"p": ["\ud800"]}}, "variables.p[0]", "surrogate"),
        ({"template": "x", "variables": {"\ud800": ["1"]}}, "variables.\\ud800", "is no name"),
        ({"template": "x", "variables": {"n" * 61: ["1"]}}, "variables." + "n" * 40, "at most 60"),
        ({"template": "{|b}"}, "template", "prompt 1 that it makes is empty"),
        ({"prompts": ["a"], "variant": 3}, "variant", "did you mean variants?"),
        ({"prompts": ["a"], "size": "250x250"}, "size", "not a multiple"),
        ({"prompts": ["a"], "width": 250, "height": 250}, "width", "height: 250 is not a multiple"),
        (
            {"prompts": ["a"], "num_inference_steps": 51},
            "num_inference_steps",
            "51 is out of range",
        ),
        ({"prompts": ["a"], "batch_size": 2}, "batch_size", "Unknown field"),
        ({"prompts": ["a"], "name": "n" * 201}, "name", "201 characters"),
        ({"prompts": ["a"], "priority": "high"}, "priority", "is not one of"),
        ({"prompts": ["a"], "output_compression": 3}, "output_compression", "png is lossless"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str, why: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(**fields)
    assert (refused.value.param, why in refused.value.message) == (param, True), refused.value


def test_a_small_body_cannot_stand_for_gigabytes() -> None:
    body = {"template": "{p}" + "{a|b}" * 13, "variables": {"p": ["x" * 50_000, "y" * 50_000]}}
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match=r"variables.p\[0\]: 50000 characters; at most 4"):
            job_wire.parse(json.dumps(body).encode(), Settings(), SyntheticPipeline().info, 77)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_prompts_of_a_template_are_no_more_than_a_body_can_list() -> None:
    body = {"template": "{a|b}" * 13 + "{p}", "variables": {"p": ["x" * 3900]}}
    with pytest.raises(InvalidRequest, match="more than 8388608 characters together") as refused:
        job_wire.parse(json.dumps(body).encode(), Settings(), SyntheticPipeline().info, 77)
    assert refused.value.param == "template"


def refused(**fields: Any) -> InvalidRequest:
    info = SyntheticPipeline("synthetic:max_tokens=3").info
    with pytest.raises(InvalidRequest) as error:
        job_wire.parse(json.dumps(fields).encode(), SETTINGS, info, 77)
    return error.value


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (
            {"prompts": ["a b c", "a b c d"]},
            "prompts[1]",
            "prompts[1]: 4 tokens; this model reads at most 3: shorten it by about 25 %.",
        ),
        (
            {"template": "a b {c|c d}"},
            "template",
            "template: prompt 2 that it makes has 4 tokens; this model reads at most 3",
        ),
        (
            {"prompts": ["a"], "negative_prompt": "a b c d e f"},
            "negative_prompt",
            "negative_prompt: 6 tokens; this model reads at most 3: shorten it by about 50 %.",
        ),
    ],
)
def test_a_prompt_that_would_be_cut_makes_no_job(
    fields: dict[str, Any], param: str, message: str
) -> None:
    error = refused(**fields)
    assert message in str(error)
    assert (error.param, error.code) == (param, "prompt_too_long")
