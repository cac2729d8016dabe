import json
from typing import Any

import pytest

from worker.api import job_wire
from worker.errors import InvalidRequest
from worker.pipelines.synthetic import SyntheticPipeline
from worker.settings import Settings
from worker.storage.jobs import Wish

SETTINGS = Settings(max_prompt_chars=30)


def parse(**fields: Any) -> Wish:
    return job_wire.parse(json.dumps(fields).encode(), SETTINGS, SyntheticPipeline().info, 77)


def test_a_list_of_prompts_with_variants() -> None:
    wish = parse(prompts=["a", "b"], variants=2, seed=5, size="256x128", name="two")
    assert wish.prompts == ("a", "a", "b", "b")
    assert (wish.first_seed, wish.width, wish.height, wish.steps) == (5, 256, 128, 8)
    assert (wish.name, wish.priority, wish.output_format) == ("two", 1, "png")


def test_a_template_with_variables() -> None:
    wish = parse(template="{red|blue} {p}", variables={"p": ["tea"]}, priority="interactive")
    assert wish.prompts == ("red tea", "blue tea")
    assert (wish.first_seed, wish.priority) == (77, 0)


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
        ({"template": "{p}" * 9, "variables": {"p": ["long"]}}, "template", "36 characters"),
        ({"template": "{p}", "variables": ["p"]}, "variables", "object of lists, not a list"),
        ({"template": "{p}", "variables": {"p": "x"}}, "variables.p", "must be a list"),
        ({"template": "{p}", "variables": {"p": []}}, "variables.p", "the list is empty"),
        ({"template": "{p}", "variables": {"p": [1]}}, "variables.p[0]", "must be text"),
        ({"template": "x", "variables": {"a b": ["1"]}}, "variables.a b", "is no name"),
        ({"template": "{|b}"}, "template", "prompt 1 that it makes is empty"),
        ({"prompts": ["a"], "variant": 3}, "variant", "did you mean variants?"),
        ({"prompts": ["a"], "size": "250x250"}, "size", "not a multiple"),
        ({"prompts": ["a"], "name": "n" * 201}, "name", "201 characters"),
        ({"prompts": ["a"], "priority": "high"}, "priority", "is not one of"),
        ({"prompts": ["a"], "output_compression": 3}, "output_compression", "png is lossless"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str, why: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(**fields)
    assert (refused.value.param, why in refused.value.message) == (param, True), refused.value
