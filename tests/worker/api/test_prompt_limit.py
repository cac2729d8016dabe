import json
from typing import Any

import pytest

from worker.api.schemas import wire
from worker.errors import InvalidRequest
from worker.models.synthetic import SyntheticPipeline
from worker.settings import Settings

INFO = SyntheticPipeline("synthetic:max_tokens=3").info


def parse(**fields: Any) -> wire.Generation:
    return wire.parse(json.dumps(fields).encode(), Settings(), INFO)


@pytest.mark.parametrize(
    ("fields", "param", "tokens"),
    [
        ({"prompt": "a b c d"}, "prompt", 4),
        ({"prompt": ["a", "a b c d e"]}, "prompt[1]", 5),
        ({"prompt": "a", "negative_prompt": "a b c d e f"}, "negative_prompt", 6),
    ],
)
def test_a_prompt_that_would_be_cut_is_refused(
    fields: dict[str, Any], param: str, tokens: int
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(**fields)
    assert f"{param}: {tokens} tokens; this model reads at most 3: shorten it" in str(refused.value)
    assert (refused.value.param, refused.value.code) == (param, "prompt_too_long")
    assert refused.value.details == {
        "reason": "too_many_tokens",
        "tokens": tokens,
        "most": 3,
        "percent": {4: 25, 5: 40, 6: 50}[tokens],
    }


def test_what_fits_is_taken() -> None:
    assert parse(prompt=["a b c", "d"], negative_prompt="e f g").prompts == ("a b c", "d")


def test_the_schema_tells_the_limit() -> None:
    prompt, _ = wire.schema(Settings(), INFO)["properties"]["prompt"]["anyOf"]
    assert prompt["description"] == "At most 3 of the model's tokens."
