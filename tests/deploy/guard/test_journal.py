import json
import logging
from collections.abc import Iterator

import pytest

from deploy.guard.journal import Journal, log_to_stdout


def test_only_the_last_events_are_kept() -> None:
    journal = Journal()
    for n in range(60):
        journal.event(f"event {n}")
    assert [event["what"] for event in journal.events][::49] == ["event 10", "event 59"]


def test_alarm_keeps_its_beginning_until_it_is_over() -> None:
    journal = Journal()
    journal.alarm("fatal", "first words", "w1")
    journal.alarm("fatal", "other words", "w1")
    assert [(a["worker"], a["text"]) for a in journal.alarms] == [("w1", "first words")]
    journal.clear("fatal", "w1")
    assert journal.alarms == []


@pytest.fixture
def logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.mark.usefixtures("logging_restored")
def test_log_is_one_json_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stdout()
    Journal().alarm("unkillable", "two\nlines", "w1")
    line = json.loads(capsys.readouterr().out)
    assert (line["level"], line["worker"]) == ("error", "w1")
    assert line["what"] == "alarm unkillable: two\nlines"
