import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from worker.coordination.resume_tokens import MAX_AGE_S, ResumeTokens
from worker.storage.secret import only
from worker.types import DrawSpec, Parameters

SECRET = b"s" * 32
SPECS = tuple(DrawSpec("a fox", seed, Parameters(64, 64, 8)) for seed in (5, 6, 7))
AT = 1_795_353_043.118


@pytest.fixture
def places() -> ResumeTokens:
    return ResumeTokens(only(SECRET))


@pytest.fixture
def place(places: ResumeTokens) -> str:
    return places.text(AT, "key_a", SPECS)


def arrival(
    places: ResumeTokens, text: str, turn: str, specs: Sequence[DrawSpec], at: float
) -> Any:
    """What a request finds that is answered at once."""
    place = places.take(text, turn, specs, at)
    places.free(place)
    return place and place.arrived_at


def test_a_place_tells_any_worker_of_the_cell_when_its_holder_arrived(place: str) -> None:
    assert arrival(ResumeTokens(only(SECRET)), place, "key_a", SPECS, AT + 60) == AT
    assert ResumeTokens(only(b"of another cell")).take(place, "key_a", SPECS, AT + 60) is None


def test_a_place_is_good_for_some_of_its_pictures(places: ResumeTokens, place: str) -> None:
    assert arrival(places, place, "key_a", SPECS[1:2], AT) == AT


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8},
        {"prompt": "a hen"},
        {"parameters": Parameters(64, 64, 9)},
        {"parameters": Parameters(128, 64, 8)},
        {"parameters": Parameters(64, 64, 8, negative_prompt="b")},
    ],
)
def test_a_place_is_good_for_no_other_picture(
    places: ResumeTokens, place: str, change: dict[str, Any]
) -> None:
    other = dataclasses.replace(SPECS[0], **change)
    assert places.take(place, "key_a", [SPECS[0], other], AT) is None


def test_a_place_is_good_for_its_holder_alone(places: ResumeTokens, place: str) -> None:
    assert places.take(place, "key_b", SPECS, AT) is None


def test_a_place_is_good_for_a_while(places: ResumeTokens, place: str) -> None:
    assert places.take(place, "key_a", SPECS, AT + MAX_AGE_S + 0.01) is None
    assert places.take(place, "key_a", SPECS, AT - 0.01) is None
    assert places.take(place, "key_a", SPECS, AT + MAX_AGE_S - 0.01) is not None


def test_a_place_is_for_one_request_at_a_time(places: ResumeTokens, place: str) -> None:
    taken = places.take(place, "key_a", SPECS[:2], AT)
    told, *signatures = place.split(".")
    for copy in (
        place,
        f"0{place}",
        ".".join([told, *reversed(signatures)]),
        f"{place}.{'a' * 16}",
    ):
        assert places.take(copy, "key_a", SPECS[1:], AT) is None
    assert arrival(places, place, "key_a", SPECS[2:], AT) == AT
    places.free(taken)
    assert arrival(places, place, "key_a", SPECS, AT) == AT


def test_no_change_of_a_place_goes_unseen(places: ResumeTokens, place: str) -> None:
    for i in range(len(place)):
        changed = place[:i] + chr(ord(place[i]) ^ 1) + place[i + 1 :]
        assert places.take(changed, "key_a", SPECS, AT) is None


@pytest.mark.parametrize("text", ["", ".", "1", "1.", "9" * 5000 + ".", "é", f"1.{'a' * 16}\n"])
def test_nonsense_is_no_place(places: ResumeTokens, text: str) -> None:
    assert places.take(text, "key_a", SPECS, AT) is None
