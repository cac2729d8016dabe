from dataclasses import asdict
from typing import Any

import pytest

from deploy.cluster.differences import MOST_LORAS, differences
from tests.deploy.cluster import cells


def host(
    id: str, models: dict[str, str], loras: dict[str, str] | None = None, **changes: Any
) -> dict[str, Any]:
    """``models`` and ``loras``: digests by name."""
    serves = [{"name": name, "digest": digest} for name, digest in models.items()]
    return asdict(cells.host(id, facts={"serves": serves, "loras": loras or {}}, **changes))


def told(*hosts: dict[str, Any]) -> list[str]:
    return [each.text for each in differences(hosts)]


def test_hosts_with_the_same_files_and_adapters_do_not_differ() -> None:
    a = host("a", {"turbo": "1", "photo": "2"}, {"night": "n"})
    b = host("b", {"Turbo": "1"}, {"night": "n"})
    assert told(a, b) == []


def test_a_model_of_one_name_and_other_files_is_told() -> None:
    hosts = [host(id, {"turbo": digest}) for id, digest in (("c", "1"), ("a", "2"), ("b", "1"))]
    assert told(*hosts) == ["model turbo is another one on each of: a; b, c"]
    assert "zimage restart --rolling" in differences(hosts)[0].remedy


def test_an_adapter_that_one_lacks_or_has_otherwise_is_told() -> None:
    a = host("a", {"turbo": "1"}, {"night": "n", "stars": "s"})
    b = host("b", {"turbo": "1"}, {"night": "m"})
    assert told(a, b) == [
        "adapter night is another one on each of: a; b",
        "adapter stars is missing on b",
    ]
    assert "zimage loras add" in differences([a, b])[1].remedy


def test_adapters_of_hosts_with_other_models_are_their_own_business() -> None:
    a, b = host("a", {"turbo": "1"}, {"night": "n"}), host("b", {"photo": "2"})
    assert told(a, b) == []


def test_what_a_host_does_not_tell_is_no_difference() -> None:
    """It has not loaded the model yet, is of an older version, or has too many adapters to tell."""
    whole = {f"{k:04}": "x" for k in range(MOST_LORAS)}
    a = host("a", {"turbo": "1"}, {**whole, "zz": "z"})
    assert told(a, host("b", {"turbo": ""}, whole)) == []
    assert told(a, asdict(cells.host("b"))) == []
    assert told(a, host("b", {"turbo": "2"}, wanted="removed")) == []
    assert told(a, host("b", {"turbo": "2"}, role="front")) == []


@pytest.mark.parametrize("facts", [{"serves": 5}, {"serves": [3]}, {"serves": [{}], "loras": 7}])
def test_what_no_host_of_ours_says_is_nothing(facts: dict[str, Any]) -> None:
    assert told(host("a", {"turbo": "1"}), asdict(cells.host("b", facts=facts))) == []
