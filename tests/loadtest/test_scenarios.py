import tomllib

import pytest

from loadtest.runner import drained
from loadtest.scenarios import edited


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[limits.request]\n",
        "[limits.request]\nmax_steps = 50\n[limits.worker]\nmax_batch = 2\n",
        "[nginx]\nmax_steps = 1\n[limits.request]\nmax_steps = 50\n[logs]\nkeep = 1\n",
    ],
)
def test_one_key_is_changed_and_no_other(text: str) -> None:
    table = "limits.request"
    before, after = tomllib.loads(text), tomllib.loads(edited(text, table, "max_steps", 49))
    assert after["limits"]["request"].pop("max_steps") == 49
    before.setdefault("limits", {}).setdefault("request", {}).pop("max_steps", None)
    assert after == before


def test_queue_is_drained_when_it_is_empty_after_the_load() -> None:
    points = [(1.0, 0), (2.0, 9), (3.0, 4), (4.5, 0), (6.0, 0)]
    assert drained(points, since=2.5) == 2.0
    assert drained(points[:3], since=2.5) is None
