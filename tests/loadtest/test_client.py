"""The client against a server that streams, cuts, refuses and fails."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from loadtest.checks import Checker
from loadtest.client import EDITS, Client, Way
from tests.http_server import QuietHandler, serving
from tests.loadtest.test_checks import BODY, drawn

QUEUED = {"type": "image_generation.queued", "seeds": [5], "resume": "a place"}
STEP = {"type": "image_generation.step", "step": 2}
COMPLETED = {"type": "image_generation.completed", "image_index": 0, **drawn()}
DONE = {"type": "image_generation.done", "queue_ms": 100, "inference_ms": 900}
BROKEN = {"type": "error", "error": {"type": "server_error", "message": "broken"}}
REFUSED = {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}


@dataclass
class Server:
    """Answers with the next of ``answers``: events, or a status with headers and a body."""

    url: str = ""
    answers: list[Any] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    told = Server()

    class Handler(QuietHandler):
        protocol_version = "HTTP/1.0"

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            told.asked.append(json.loads(self.rfile.read(length)))
            answer = told.answers.pop(0)
            events = isinstance(answer, list)
            status, headers, body = (200, {}, b"") if events else answer
            self.send_response(status)
            for name, value in {"X-Worker": "w1", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for event in answer if events else []:
                self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            self.wfile.write(body)

    with serving(Handler) as told.url:
        yield told


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    client = Client(server.url, Checker("synthetic"), "Designer")
    yield client
    client.session.close()


def test_drawn_picture_is_ok(server: Server, client: Client) -> None:
    body = json.dumps({"data": [drawn()]}).encode()
    server.answers = [(200, {"X-Queue-Ms": "100", "X-Inference-Ms": "900"}, body)]
    done = client.draw(BODY)
    assert (done.result, done.worker, done.queue_s, done.draw_s) == ("ok", "w1", 0.1, 0.9)


def test_refusal_is_no_failure(server: Server, client: Client) -> None:
    server.answers = [(503, {"Retry-After": "7"}, b'{"error": {"message": "full"}}')]
    assert client.draw(BODY).result == "refused"


@pytest.mark.parametrize("status", [200, 429, 500, 503])
def test_anything_else_is_a_failure(server: Server, client: Client, status: int) -> None:
    server.answers = [(status, {}, b"<html>sorry</html>")]
    done = client.draw(BODY)
    assert done.result == "failed"
    assert "sorry" in done.error


def test_cut_stream_is_asked_for_again_with_its_seed_and_place(
    server: Server, client: Client
) -> None:
    server.answers = [[QUEUED, STEP], [QUEUED, COMPLETED, DONE]]
    done = client.stream({"prompt": "a cat", "size": "64x64"})
    assert (done.result, done.resumed) == ("ok", 1)
    assert "resume" not in server.asked[0]
    assert (server.asked[1]["seed"], server.asked[1]["resume"]) == (5, "a place")


def test_stream_of_an_edit_that_was_cut_is_asked_for_again_by_id(
    server: Server, client: Client
) -> None:
    renamed = [
        {**event, "type": str(event["type"]).replace("generation", "edit")}
        for event in (QUEUED, COMPLETED, DONE)
    ]
    server.answers = [renamed[:1], renamed]
    done = client.stream({**BODY, "image": "upload_1"}, way=Way(EDITS))
    assert (done.result, done.resumed, done.error) == ("ok", 1, "")
    again = {**BODY, "image": "upload_1", "stream": True, "resume": "a place"}
    assert server.asked[1] == again


def test_an_upload_is_known_by_its_id_and_one_that_is_refused_by_none(
    server: Server, client: Client
) -> None:
    server.answers = [(201, {}, b'{"id": "upload_1"}'), (413, {}, b"too large")]
    done, id = client.upload(b'"a PNG"')
    refused, none = client.upload(b'"a PNG"')
    assert (done.kind, done.result, id) == ("upload", "ok", "upload_1")
    assert (refused.result, refused.error, none) == ("failed", "HTTP 413: too large", "")


def test_stream_of_a_broken_worker_is_asked_for_again(server: Server, client: Client) -> None:
    server.answers = [[QUEUED, BROKEN], [QUEUED, COMPLETED, DONE]]
    done = client.stream(BODY)
    assert (done.result, done.resumed, done.error) == ("ok", 1, "")


def test_refused_stream_is_not_asked_for_again(server: Server, client: Client) -> None:
    server.answers = [[QUEUED, REFUSED]]
    done = client.stream(BODY)
    assert (done.result, done.resumed) == ("failed", 0)


def test_stream_that_never_ends_well_is_a_failure(server: Server, client: Client) -> None:
    server.answers = [[QUEUED]] * 6
    assert client.stream(BODY).result == "failed"


def test_user_leaves_after_some_steps(server: Server, client: Client) -> None:
    server.answers = [[QUEUED, STEP, COMPLETED, DONE]]
    assert client.stream(BODY, leave_after=2).result == "left"
