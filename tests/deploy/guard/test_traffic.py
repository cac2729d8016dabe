import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from deploy.guard.traffic import AccessLog, Traffic, replays_of, route_of
from worker.bounds import GENERATIONS as DRAW


def line(status: int = 200, seconds: float = 1.0, path: str = DRAW, connects: str = "0.0") -> str:
    fields = {
        "path": path,
        "status": status,
        "seconds": seconds,
        "bytes": 1000,
        "upstream_connect_s": connects,
    }
    return json.dumps(fields) + "\n"


def append(log: Path, text: str) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(text)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "access.log"
    path.write_text("what was there before\n")
    return path


@pytest.fixture
def follower(log: Path) -> Iterator[AccessLog]:
    with closing(AccessLog(log)) as follower:
        yield follower


def test_only_what_is_new_and_whole_is_read(log: Path, follower: AccessLog) -> None:
    append(log, "one\ntw")
    assert follower.lines() == [b"one"]
    append(log, "o\nthree\n")
    assert follower.lines() == [b"two", b"three"]
    assert follower.lines() == []


def test_nothing_is_lost_when_the_log_is_rotated(log: Path, follower: AccessLog) -> None:
    append(log, "one\n")
    moved = log.rename(f"{log}.1")
    # Until nginx is told to reopen, it goes on writing to the moved file.
    append(moved, "two\n")
    assert follower.lines() == [b"one", b"two"]
    append(moved, "three\n")
    append(log, "four\n")
    assert follower.lines() == [b"three"]
    assert follower.lines() == [b"four"]


def test_a_log_that_comes_later_is_read_from_its_beginning(tmp_path: Path) -> None:
    with closing(AccessLog(tmp_path / "access.log")) as follower:
        assert follower.lines() == []
        append(tmp_path / "access.log", "one\n")
        assert follower.lines() == [b"one"]


def test_an_answer_counts_whatever_bytes_its_line_has(log: Path) -> None:
    with closing(AccessLog(log)) as follower:
        traffic = Traffic(follower, CollectorRegistry())
        with log.open("ab") as file:
            file.write(line(200).encode().replace(b'"path"', b'"agent": "\xff\xc3", "path"'))
        traffic.read()
        assert traffic.take_window().answered == 1


@pytest.fixture
def traffic(follower: AccessLog) -> Traffic:
    return Traffic(follower, CollectorRegistry())


def test_a_window_says_what_clients_got(log: Path, traffic: Traffic) -> None:
    append(log, line(200, 1.0) + line(200, 3.0) + line(503) + line(429) + line(500) + line(499))
    append(log, line(400) + line(200, path="/js/app.js") + "no JSON\n" + line(0))
    traffic.read()
    window = traffic.take_window()
    assert (window.answered, window.refused, window.failed) == (2, 2, 1)
    assert window.percentiles_s() == (2.0, 2.9)
    assert traffic.take_window().percentiles_s() == (None, None)


def test_clients_make_no_new_series(log: Path, follower: AccessLog) -> None:
    registry = CollectorRegistry()
    traffic = Traffic(follower, registry)
    append(log, "".join(line(404, path=f"/{n}") for n in range(50)))
    traffic.read()
    labels = {"route": "page", "code": "404"}
    assert registry.get_sample_value("zimage_front_requests_total", labels) == 50
    assert registry.get_sample_value(
        "zimage_front_request_duration_seconds_count", {"route": "page"}
    )


@pytest.mark.parametrize(
    ("path", "route"),
    [
        (DRAW, DRAW),
        ("/v1/images/abc", "/v1/images"),
        ("/v1/jobs/1/events", "/v1/jobs"),
        ("/v1/nothing", "/v1"),
        ("/v1images", "page"),
        ("", "page"),
    ],
)
def test_a_path_has_one_of_few_routes(path: str, route: str) -> None:
    assert route_of(path) == route


@pytest.mark.parametrize(
    ("connects", "replays"),
    [("0.000", 0), ("-, 0.000", 0), ("0.000, -, 0.001", 1), ("0.0, 0.0 : 0.0", 2), ("", 0)],
)
def test_a_closed_gate_is_no_replay(connects: str, replays: int) -> None:
    assert replays_of(connects) == replays


def test_whoever_only_reads_which_model_it_is_for_is_no_replay() -> None:
    assert replays_of("0.000 : 0.000", "421 : 200") == 0
    assert replays_of("-, 0.000 : 0.000, 0.000", "502, 421 : 503, 200") == 1
    assert replays_of("0.000 : 0.000, 0.000", "421 : 403, 200") == 0
    assert replays_of("0.000", "403") == 0
