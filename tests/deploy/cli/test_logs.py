"""Logs of all programs read as one, by time."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from deploy.cli import log_lines
from deploy.cli import logs as command
from deploy.cli.log_lines import Follower, Level, Log, merged, shown
from tests.ports import free_port

W1 = """\
Loading: 0%\rLoading: 80%{"at": "2027-01-31T18:00:01.500Z", "level": "info", "worker": "w1", "event": "ready"}
a library says so
{"at": "2027-01-31T18:00:04.000Z", "level": "error", "worker": "w1", "event": "died", "traceback": "T\\n  oops"}
"""  # noqa: E501
GUARD = '{"at": 1801418402.25, "level": "warning", "worker": "w1", "what": "out: silent"}\n'
SUPERVISORD = "2027-01-31 18:00:01,750 CRIT Supervisor is running as root.\n"
NGINX = "2027/01/31 18:00:03 [error] 7#7: *1 upstream prematurely closed\n"
ACCESS = (
    '{"at":"2027-01-31T18:00:05+00:00","end":1801418405.125,"request_id":"ab","method":"GET",'
    '"path":"/v1/models","status":502,"seconds":0.0125,"worker":"","user_agent":"curl 7"}\n'
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of a cell's logs, on a machine whose time is UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    logs = tmp_path / "var" / "logs"
    logs.mkdir(parents=True)
    texts = {"w1": W1, "guard": GUARD, "supervisord": SUPERVISORD, "nginx-error": NGINX}
    for name, text in (texts | {"access": ACCESS}).items():
        path = logs / f"{name}.log"
        path.write_text(text, encoding="utf-8", newline="")
        os.utime(path, (1801418410, 1801418410))
    yield logs
    monkeypatch.undo()
    time.tzset()


def run(folder: Path, capsys: pytest.CaptureFixture[str], *programs: str, **options: object) -> str:
    config = folder.parents[1] / "cluster.toml"
    port, ops = free_port(), free_port()
    var = folder.parent
    config.write_text(
        f'[cell]\nvar_dir = "{var}"\n[listen]\nport = {port}\n[ops]\nport = {ops}\n', "utf-8"
    )
    command.logs(list(programs), config, **options)  # type: ignore[arg-type]
    return capsys.readouterr().out


def test_lines_of_all_programs_stand_in_order_of_time(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = run(folder, capsys)
    assert told.splitlines() == [
        "01-31 18:00:01.500 w1          INFO    Loading: 0%",
        "01-31 18:00:01.500 w1          INFO    Loading: 80%",
        "01-31 18:00:01.500 w1          INFO    ready",
        "01-31 18:00:01.500 w1          INFO    a library says so",
        "01-31 18:00:01.750 supervisord ERROR   Supervisor is running as root.",
        "01-31 18:00:02.250 guard       WARNING out: silent worker=w1",
        "01-31 18:00:03.000 nginx-error ERROR   7#7: *1 upstream prematurely closed",
        "01-31 18:00:04.000 w1          ERROR   died",
        "    T",
        "      oops",
    ]


def test_requests_read_as_a_line_of_words(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = run(folder, capsys, "access")
    assert told == (
        "01-31 18:00:05.125 access ERROR   GET /v1/models 502 12.5 ms "
        'user_agent="curl 7" request_id=ab\n'
    )


def test_json_has_every_line_and_those_that_were_json_as_they_were(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = run(folder, capsys, as_json=True).splitlines()
    assert GUARD.strip() in lines
    assert json.loads(lines[4]) == {
        "at": "2027-01-31T18:00:01.750+00:00",
        "level": "error",
        "program": "supervisord",
        "text": SUPERVISORD.strip(),
    }
    assert all(isinstance(json.loads(line), dict) for line in lines)


def test_level_and_since_leave_out_what_is_less_or_older(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = run(folder, capsys, "w1", "guard", level=Level.WARNING)
    assert [line[19:] for line in bad.splitlines()[:2]] == [
        "guard WARNING out: silent worker=w1",
        "w1    ERROR   died",
    ]
    late = run(folder, capsys, since="2027-01-31T18:00:03")
    assert [line[15:33] for line in late.splitlines()[:2]] == [
        "000 nginx-error ER",
        "000 w1          ER",
    ]
    assert run(folder, capsys, lines=1, since="2027-01-31T18:00:03").startswith("01-31 18:00:04")


@pytest.mark.parametrize("count", [1, 3, 7, 19, 20, 99])
def test_the_last_lines_are_those_of_the_whole_through_rotated_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(log_lines, "_BLOCK_BYTES", 50)
    path = tmp_path / "guard.log"
    lines = [f'{{"at": {n}.5, "level": "info", "what": "{"x" * n}"}}\n' for n in range(20)]
    for name, part in (
        ("guard.log.2", lines[:4]),
        ("guard.log.1", lines[4:9]),
        ("guard.log", lines[9:]),
    ):
        (tmp_path / name).write_text("".join(part), encoding="utf-8")
    log, end = Log("guard", path), path.stat().st_size
    with path.open("a", encoding="utf-8") as file:
        file.write("later\n")  # than what is looked at
    assert [line.at for line in log.last(count, end)] == [n + 0.5 for n in range(20)][-count:]
    everything = [n + 0.5 for n in range(20)]
    assert [line.at for line in merged({log: end}, None, 0.0, Level.DEBUG)] == everything


def test_followers_see_whole_lines_once_through_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "w1.log"
    path.write_text("old\nhal", encoding="utf-8")
    log = Log("w1", path)
    follower = Follower(log)
    assert [line.text for line in log.last(9, follower.position)] == ["old"]
    assert list(follower.news()) == []
    with path.open("a", encoding="utf-8") as file:
        file.write("f\nlast of the old file\n")
        file.flush()
        path.replace(tmp_path / "w1.log.1")
        path.write_text("first of the new\n", encoding="utf-8")
        texts = [line.text for line in follower.news()]
    assert texts == ["half", "last of the old file", "first of the new"]
    assert list(follower.news()) == []
    follower.close()


def test_a_log_that_begins_later_is_followed_from_its_beginning(tmp_path: Path) -> None:
    follower = Follower(Log("w2", tmp_path / "w2.log"), whole=True)
    assert list(follower.news()) == []
    (tmp_path / "w2.log").write_text("hello\n", encoding="utf-8")
    assert [line.text for line in follower.news()] == ["hello"]
    follower.close()


def test_moments_are_ago_or_local_or_refused_by_name(folder: Path) -> None:
    now = time.time()
    assert now - command._moment("90s") == pytest.approx(90, abs=5)
    assert now - command._moment("1.5h") == pytest.approx(5400, abs=5)
    assert command._moment("2027-01-31T18:00") == 1801418400
    assert command._moment("2027-01-31T18:00+08:00") == 1801418400 - 8 * 3600
    assert command._moment("7:05") % 86_400 == 7 * 3600 + 300
    for wrong in ("soon", "10", "25:00", "-5m"):
        with pytest.raises(typer.BadParameter, match="--since"):
            command._moment(wrong)


def test_programs_without_logs_are_named_with_those_that_have_some(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.BadParameter, match="no log w9; there are: access, guard"):
        run(folder, capsys, "w9")


def test_a_line_that_looks_like_json_and_is_none_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "w1.log"
    path.write_text('{"at": "never"}\n{"at": 1, "level"\n[1]\n', encoding="utf-8")
    found = Log("w1", path).last(9, path.stat().st_size)
    assert [shown(line, 2)[2] for line in found] == ['{"at": "never"}', '{"at": 1, "level"', "[1]"]
