import asyncio

import pytest

from deploy.guard.journal import Journal
from deploy.guard.troubles import Troubles


def test_what_is_survived_is_told_once() -> None:
    journal = Journal()
    troubles = Troubles(journal)
    for _ in range(3):
        with troubles.survived("rotating logs"):
            raise OSError(28, "No space left on device")
    with troubles.survived("judging", "w1"):
        raise ValueError("odd")
    assert [(event["worker"], event["what"]) for event in journal.events] == [
        (None, "rotating logs failed: OSError(28, 'No space left on device')"),
        ("w1", "judging failed: ValueError('odd')"),
    ]


def test_end_of_the_guard_is_no_trouble() -> None:
    with pytest.raises(asyncio.CancelledError), Troubles(Journal()).survived("judging"):
        raise asyncio.CancelledError


def test_loop_that_failed_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.guard.troubles._AGAIN_S", 0.0)
    begun: list[int] = []

    async def loop() -> None:
        begun.append(1)
        if len(begun) == 3:
            raise asyncio.CancelledError
        raise RuntimeError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(Troubles(Journal()).again_and_again("judging", loop))
    assert len(begun) == 3
