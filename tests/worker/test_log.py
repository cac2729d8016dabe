import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from worker import log


@pytest.fixture
def root() -> Iterator[None]:
    logger = logging.getLogger()
    before = logger.handlers[:], logger.level
    yield
    logger.handlers[:], level = before
    logger.setLevel(level)
    logging.raiseExceptions = True


def lines(stdout: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stdout.getvalue().splitlines()]


@pytest.mark.usefixtures("root")
def test_lines_are_json_with_bounded_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", stdout := io.StringIO())
    writer = log.LogWriter("w7")
    log.event("hello\nworld", path="x" * 9000)
    writer.close()
    (line,) = lines(stdout)
    assert (line["worker"], line["event"], line["level"]) == ("w7", "hello\nworld", "info")
    assert len(line["path"]) == log.MAX_FIELD_CHARS


@pytest.mark.usefixtures("root")
def test_failure_keeps_the_end_of_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", stdout := io.StringIO())
    writer = log.LogWriter("w7")
    log.failure("it broke", ValueError("why"), request_id="r")
    writer.close()
    (line,) = lines(stdout)
    assert line["traceback"].endswith("ValueError: why")
    assert line["request_id"] == "r"


@pytest.mark.usefixtures("root")
def test_reader_that_stopped_does_not_stop_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Stuck())
    monkeypatch.setattr(log, "MAX_QUEUED_LINES", 10)
    writer = log.LogWriter("w7")
    for _ in range(1000):
        log.event("line")
    writer.close(timeout_s=0.5)
    assert writer.lines.lost == 1000


def test_nothing_is_lost_where_nobody_writes_lines() -> None:
    assert log.lost() == 0


@pytest.mark.usefixtures("root")
def test_a_line_that_cannot_be_written_does_not_end_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", stdout := io.StringIO())
    writer = log.LogWriter("w7")
    log.event("odd", what=object())  # type: ignore[arg-type]
    logging.getLogger("library").warning("%d pictures", "no")
    log.event("next")
    writer.close()
    assert [line["event"] for line in lines(stdout)] == ["bad log line", "bad log line", "next"]


@pytest.mark.usefixtures("root")
def test_lines_of_libraries_keep_their_order_and_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", stdout := io.StringIO())
    writer = log.LogWriter("w7")
    log.event("first")
    logging.getLogger("library").warning("second")
    writer.close()
    assert [(line["event"], line["level"]) for line in lines(stdout)] == [
        ("first", "info"),
        ("second", "warning"),
    ]


@pytest.mark.usefixtures("root")
def test_nothing_in_a_line_ends_the_thread_that_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(str):
        def __getitem__(self, _: Any) -> str:
            raise RuntimeError("a bug")

    monkeypatch.setattr(sys, "stdout", stdout := io.StringIO())
    writer = log.LogWriter("w7")
    log.event("odd", field=Odd("x"))
    log.event("after")
    writer.close()
    assert [line["event"] for line in lines(stdout)] == ["bad log line", "after"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\udcff.png", "\ufffd.png"),
        ("\ud83d", "\ufffd"),
        ("\U0001f98a", "\U0001f98a"),
        ("\\ud800", "\\ud800"),
        ("\n\x9b\u2028", "\n\x9b\u2028"),
    ],
)
def test_every_reader_takes_a_line(text: str, shown: str) -> None:
    line = log.as_json({"path": text, "more": [{text: (text,)}]})
    assert line.isascii()
    assert orjson.loads(line) == {"path": shown, "more": [{shown: [shown]}]}
