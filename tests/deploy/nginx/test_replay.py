import json
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from tests.deploy.nginx.site import Site
from tests.deploy.processes import ask, wait_until

DRAW = "/v1/images/generations"


def in_use(site: Site, name: str) -> bool:
    return bool(ask(site.layout, name, "GET", "/readyz").json()["running"])


def test_request_of_a_killed_worker_is_drawn_by_another(front: Site) -> None:
    with front.worker("w1"), front.worker("w2"):
        replies = [front.draw(prompt="die w1", n=2) for _ in range(2)]
    assert [reply.json()["worker"] for reply in replies] == ["w2", "w2"]
    assert replies[0].json()["asked"] == {"prompt": "die w1", "n": 2}


def test_replay_keeps_id_and_start(front: Site) -> None:
    with front.worker("w1") as first, ThreadPoolExecutor() as pool:
        sent = time.time()
        reply = pool.submit(front.draw, prompt="hang w1")
        wait_until(lambda: in_use(front, "w1"), "drawing")
        time.sleep(1.0)  # a start that is taken anew would be seen
        with front.worker("w2"):
            first.kill()
            headers = reply.result().json()["headers"]
    assert float(headers["x-request-start"]) - sent < 0.9
    tries = re.findall(r"w\d", front.log_of(headers["x-request-id"])["upstream_addr"])
    assert "w1" in tries
    assert tries[-1] == "w2"


def test_chunked_body_is_replayed_intact(front: Site) -> None:
    asked = {"prompt": "die w1", "filler": "ä" * 300_000}
    body = json.dumps(asked, ensure_ascii=False).encode()
    chunks = (body[i : i + 9_999] for i in range(0, len(body), 9_999))
    with front.worker("w1") as first, front.worker("w2"):
        replies = [front.client.post(DRAW, content=content) for content in (chunks, body)]
        assert first.wait(10) == 1
    assert [reply.json()["asked"] for reply in replies] == [asked, asked]


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_failed_worker_is_passed_over(front: Site, status: int) -> None:
    with front.worker("w1"), front.worker("w2"):
        replies = [front.draw(prompt="fail w1", status=status) for _ in range(4)]
    assert {reply.json()["worker"] for reply in replies} == {"w2"}


def test_clients_mistake_is_final(front: Site) -> None:
    with front.worker("w1"), front.worker("w2"), front.worker("w3"):
        reply = front.draw(prompt="fail any", status=422)
        log = front.log_of(reply.headers["X-Request-ID"])
    assert (reply.status_code, reply.text) == (422, "broken")
    assert log["upstream_status"] == "422"


def test_all_refusing_passes_the_workers_own_words(front: Site) -> None:
    with front.worker("w1"), front.worker("w2"), front.worker("w3"):
        for name in ("w1", "w2", "w3"):
            ask(front.layout, name, "POST", "/fake/ready?no")
        reply = front.draw()
        assert (reply.status_code, reply.headers["Retry-After"]) == (503, "7")
        assert reply.json()["reason"] == "stuck"
        ask(front.layout, "w2", "POST", "/fake/ready?yes")
        assert front.draw().json()["worker"] == "w2"


@pytest.mark.parametrize("name", ["w1", "w2", "w3"])
def test_closed_gate_that_is_asked_last_hides_no_workers_words(front: Site, name: str) -> None:
    """The one in the middle is the last of no turn, however often all are asked."""
    with front.worker(name):
        ask(front.layout, name, "POST", "/fake/ready?no")
        drawn = [front.draw() for _ in range(3)]
        read = [front.client.get("/v1/models") for _ in range(3)]
    told = {(reply.status_code, reply.headers["Retry-After"]) for reply in (*drawn, *read)}
    assert told == {(503, "7")}


def test_who_is_handed_back_by_the_last_worker_asks_all_once_more(front: Site) -> None:
    first_rounds = set()
    for name in ("w1", "w2", "w3"):
        with front.worker(name):
            for direct in (True, False):
                reply = front.draw(prompt="hand back", direct=direct)
                assert (reply.status_code, reply.json()["worker"]) == (200, name)
                assert "Retry-After" not in reply.headers
                assert reply.headers["X-Queue-Ms"] == "12"
                headers = reply.json()["headers"]
                assert "x-again" not in headers
                log = front.log_of(headers["x-request-id"])
                first_rounds.add(log["upstream_status"].split(" : ")[0])
    # Both ways there: the worker was the last to be asked, or a closed gate was.
    assert {"502, 502, 503", "503, 502, 502"} <= first_rounds


def test_empty_pool_is_a_json_503_and_fills_at_once(front: Site) -> None:
    reply = front.draw()
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "unavailable"
    assert 2 <= int(reply.headers["Retry-After"]) <= 5
    with front.worker("w3"):
        assert front.draw().json()["worker"] == "w3"


def test_closed_gate_ends_traffic_of_a_kept_client_connection(front: Site) -> None:
    with front.worker("w1"), front.worker("w2"):
        assert {front.draw().json()["worker"] for _ in range(6)} == {"w1", "w2"}
        front.gate("w1").close()
        assert {front.draw().json()["worker"] for _ in range(6)} == {"w2"}


def test_drawings_go_to_the_least_busy(front: Site) -> None:
    with front.worker("w1"), front.worker("w2"), ThreadPoolExecutor() as pool:
        long = pool.submit(front.draw, seconds=2)
        wait_until(lambda: in_use(front, "w1") or in_use(front, "w2"), "drawing")
        others = {front.draw().json()["worker"] for _ in range(6)}
        assert others == {"w1", "w2"} - {long.result().json()["worker"]}


@pytest.mark.parametrize("size", [12_000_000, 30_000_000])
def test_reply_to_a_slow_reader_survives_its_worker(front: Site, size: int) -> None:
    asked = {"bytes": size, "direct": True}
    with front.worker("w1") as worker, _slow_reader(front, asked) as connection:
        got = connection.recv(1000)
        wait_until(lambda: not _accepted(front, "w1", worker.pid), "taken off the worker")
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        while part := connection.recv(1 << 20):
            got += part
    head, _, body = got.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head.lower()
    assert len(json.loads(body)["filler"]) == size


def test_events_pass_unbuffered_and_a_killed_stream_is_cut_visibly(front: Site) -> None:
    asked = {"stream": True}
    with (
        front.worker("w1") as worker,
        front.client.stream("POST", DRAW, json=asked) as reply,
    ):
        parts = reply.iter_text()
        assert next(parts) == "event: one\n\n"
        worker.kill()
        with pytest.raises(httpx.RemoteProtocolError):
            next(parts)


def _accepted(site: Site, worker: str, pid: int) -> int:
    """Open connections that the worker has accepted; its listening socket has the same name."""
    name = str(site.layout.socket(worker))
    names = [each.laddr for each in psutil.Process(pid).net_connections("unix")]
    return names.count(name) - 1


def _slow_reader(site: Site, asked: dict[str, int]) -> socket.socket:
    body = json.dumps(asked).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", site.config.listen.port))
    connection.sendall(
        b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    return connection
