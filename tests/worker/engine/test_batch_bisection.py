from collections.abc import Sequence

import pytest

from tests.worker.engine.fakes import entry
from worker.engine.batch_bisection import Failure, run
from worker.engine.queue import Picture
from worker.errors import DrawingFailed, InvalidRequest, Refused
from worker.models.base import OutOfMemory


class Calls:
    """Calls that fail when they hold a bad prompt or more pictures than ``room``."""

    def __init__(self, bad: str = "", room: int = 100) -> None:
        self.bad, self.room = bad, room
        self.done: list[str] = []
        self.tried: list[int] = []
        self.failed: list[str] = []

    def __call__(self, part: Sequence[Picture]) -> Failure | None:
        prompts = [picture.spec.prompt for picture in part]
        self.tried.append(len(part))
        if len(part) > self.room:
            return Failure.of(OutOfMemory())
        if self.bad in prompts:
            return Failure.of(RuntimeError())
        self.done += prompts
        return None

    def note(self, part: Sequence[Picture], failure: Failure) -> None:
        if len(part) == 1:
            self.failed.append(part[0].spec.prompt)

    def run(self, *prompts: str) -> None:
        run(entry(*prompts).pictures, self, list, self.note)


def test_one_culprit_is_found_and_its_neighbours_get_through() -> None:
    calls = Calls(bad="b")
    calls.run("a", "b", "c")
    assert calls.done == ["a", "c"]
    assert calls.failed == ["b"]


def test_out_of_memory_halves_until_it_fits() -> None:
    calls = Calls(room=1)
    calls.run("a", "b", "c", "d")
    assert calls.done == ["a", "b", "c", "d"]
    assert calls.tried == [4, 2, 1, 1, 2, 1, 1]


def test_what_does_not_fit_alone_fails() -> None:
    calls = Calls(room=0)
    calls.run("a")
    assert calls.failed == ["a"]


def test_nothing_is_tried_for_pictures_that_nobody_waits_for() -> None:
    calls = Calls()
    run(entry("a").pictures, calls, lambda pictures: [], calls.note)
    assert calls.tried == []


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (OutOfMemory("cuda"), Refused),
        (ValueError("too long"), Refused),
        (InvalidRequest("no", param="size"), InvalidRequest),
        (RuntimeError("secret detail"), DrawingFailed),
    ],
)
def test_each_exception_becomes_an_answer(raised: Exception, told: type[Exception]) -> None:
    failure = Failure.of(raised)
    assert type(failure.error) is told
    assert "secret" not in failure.error.message


def test_the_answer_holds_no_memory_of_the_failed_call() -> None:
    try:
        raise InvalidRequest("no") from OutOfMemory()
    except InvalidRequest as error:
        failure = Failure.of(error)
    assert failure.error.__traceback__ is None
    assert failure.error.__cause__ is None
