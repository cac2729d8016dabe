from pathlib import Path

import pytest

from worker.coordination.heartbeat import HeartbeatFile, Phase, Running, digest, read_heartbeat
from worker.coordination.inflight import MAX_HANDLED, Handling, InFlight, read_in_flight


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "w1.beat"


@pytest.fixture
def table(path: Path) -> InFlight:
    heartbeat = HeartbeatFile(path)
    heartbeat.enter(Phase.IDLE, 3.0)
    return InFlight(heartbeat.mapped)


def test_a_request_stands_there_while_it_is_handled(table: InFlight, path: Path) -> None:
    one = Handling(table, digest("r"))
    one.resume()
    assert read_in_flight(path) == [Running(digest("r"), digest("r"))]
    one.call(digest("f"), struck=True)
    assert read_in_flight(path) == [Running(digest("r"), digest("f"), struck=True)]
    one.pause()
    assert read_in_flight(path) == []
    one.resume()
    one.close()
    one.resume()
    assert read_in_flight(path) == []
    heartbeat = read_heartbeat(path)
    assert heartbeat
    assert heartbeat.phase is Phase.IDLE, "the heartbeat beside it is whole"


def test_two_threads_at_work_for_one_request_are_one_line(table: InFlight, path: Path) -> None:
    one = Handling(table, digest("r"))
    one.resume()
    one.resume()
    one.pause()
    assert len(read_in_flight(path)) == 1
    one.pause()
    one.pause()
    assert read_in_flight(path) == []
    one.resume()
    assert len(read_in_flight(path)) == 1


def test_what_finds_no_line_is_handled_all_the_same(table: InFlight, path: Path) -> None:
    all_of_them = [Handling(table, digest(str(k))) for k in range(MAX_HANDLED + 3)]
    for each in all_of_them:
        each.resume()
    assert len(read_in_flight(path)) == MAX_HANDLED
    for each in all_of_them:
        each.close()
    assert read_in_flight(path) == []
    again = Handling(table, digest("again"))
    again.resume()
    assert len(read_in_flight(path)) == 1


def test_a_heartbeat_of_an_older_version_has_no_such_table(table: InFlight, path: Path) -> None:
    Handling(table, digest("r")).resume()
    path.write_bytes(path.read_bytes()[:4160])
    assert read_in_flight(path) == []
    assert read_heartbeat(path) is not None
