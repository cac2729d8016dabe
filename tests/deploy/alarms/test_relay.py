"""Alarms reach everybody who can be reached, and what did not is told."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from starlette.testclient import TestClient

from deploy.alarms import destinations, relay
from deploy.alarms.destinations import DestinationsError
from deploy.alarms.relay import Relay


class Robot:
    """A chat's robot: takes what it is sent, unless it is told to refuse."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.status = 200
        robot = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if robot.status == 200:
                    robot.heard.append(json.loads(body))
                self.send_response(robot.status)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://127.0.0.1:{self.server.server_port}/secret-of-a-robot"


@contextmanager
def listening() -> Iterator[Robot]:
    robot = Robot()
    thread = Thread(target=robot.server.serve_forever)
    thread.start()
    yield robot
    robot.server.shutdown()
    robot.server.server_close()
    thread.join()


@pytest.fixture
def robots() -> Iterator[tuple[Robot, Robot]]:
    with listening() as first, listening() as second:
        yield first, second


@pytest.fixture
def client(
    robots: tuple[Robot, Robot], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TestClient:
    monkeypatch.setattr(relay, "_PAUSE_S", 0.0)
    file = tmp_path / "to"
    file.write_text("# two\n\n" + "".join(f"{robot.url}\n" for robot in robots))
    file.chmod(0o600)
    made = Relay(lambda: destinations.read(file), tmp_path / "alarms.json")
    return TestClient(made.app())


def alert(name: str = "ZimagePoolEmpty", status: str = "firing", **labels: str) -> dict[str, Any]:
    said = {"summary": f"{name} of studio", "description": "People get 503."}
    labels = {"alertname": name, "severity": "critical", **labels}
    return {"status": status, "labels": labels, "annotations": said}


def group(*alerts: dict[str, Any], status: str = "firing") -> dict[str, Any]:
    return {"version": "4", "status": status, "alerts": list(alerts), "receiver": "zimage"}


def test_everybody_is_told_what_is_wrong(
    client: TestClient, robots: tuple[Robot, Robot], tmp_path: Path
) -> None:
    answer = client.post("/alarms", json=group(alert(), alert("ZimageErrors", zimage_test="7")))
    assert answer.status_code == 200
    for robot in robots:
        assert robot.heard[0]["title"] == "critical: ZimagePoolEmpty of studio (and 1 more)"
        assert "ZimageErrors of studio\nPeople get 503." in robot.heard[0]["message"]
    assert "secret-of-a-robot" not in answer.text + (tmp_path / "alarms.json").read_text()


def test_whoever_cannot_be_told_holds_up_nobody(
    client: TestClient, robots: tuple[Robot, Robot], tmp_path: Path
) -> None:
    robots[0].status = 500
    answer = client.post("/alarms", json=group(alert()))
    assert answer.status_code == 200
    assert sorted(answer.json()["told"].values()) == [False, True]
    assert len(robots[1].heard) == 1
    noted = json.loads((tmp_path / "alarms.json").read_text()).values()
    assert sorted(entry["failed_at"] is None for entry in noted) == [False, True]


def test_alertmanager_asks_again_while_nobody_can_be_told(
    client: TestClient, robots: tuple[Robot, Robot]
) -> None:
    for robot in robots:
        robot.status = 500
    assert client.post("/alarms", json=group(alert())).status_code == 502


def test_what_is_over_is_told_as_such(client: TestClient, robots: tuple[Robot, Robot]) -> None:
    client.post("/alarms", json=group(alert(status="resolved"), status="resolved"))
    assert robots[0].heard[0]["title"] == "Over: ZimagePoolEmpty of studio"
    assert robots[0].heard[0]["type"] == "success"


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "application/json", 400),
        (b"no json", "application/json", 400),
        (json.dumps(group()).encode(), "application/json", 400),
        (json.dumps(group(alert())).encode(), "text/plain", 415),  # as a page of another site may
        (b" " * ((1 << 20) + 1), "application/json", 413),
    ],
)
def test_what_is_no_message_is_refused(
    client: TestClient, robots: tuple[Robot, Robot], body: bytes, kind: str, status: int
) -> None:
    answer = client.post("/alarms", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert robots[0].heard == []


def test_thousands_of_alerts_are_one_short_message(
    client: TestClient, robots: tuple[Robot, Robot]
) -> None:
    client.post("/alarms", json=group(*(alert(f"A{n}") for n in range(500))))
    assert robots[0].heard[0]["message"].endswith("… and 480 more")


@pytest.mark.parametrize(
    ("text", "mode", "problem"),
    [
        ("json://127.0.0.1/a", 0o644, "other users may read"),
        ("", 0o600, "names nobody"),
        ("hello", 0o600, "line 1: not what Apprise knows"),
        ("json://127.0.0.1/a\n" * 33, 0o600, "names 33, over 32"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_remedy(
    tmp_path: Path, text: str, mode: int, problem: str
) -> None:
    file = tmp_path / "to"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(DestinationsError, match=problem):
        destinations.read(file)


@pytest.mark.parametrize(
    "line",
    [
        "wecombot://0123abcd-0123-4567-89ab-0123456789ab",
        "feishu://0123abcd-0123-4567-89ab-0123456789ab",
        "dingtalk://0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "mailtos://user:password@mail.example.com?from=zimage@example.com&to=ops@example.com",
    ],
)
def test_what_the_documentation_writes_is_known(tmp_path: Path, line: str) -> None:
    file = tmp_path / "to"
    file.write_text(line)
    file.chmod(0o600)
    (found,) = destinations.read(file)
    assert "0123456789ab" not in found.shown
    assert "password" not in found.shown
