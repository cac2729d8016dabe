"""Requests of bytes that are no text are answered, and leave lines that every reader takes."""

import socket
from pathlib import Path

import orjson

from tests.worker.processes import wait_until, worker

ODD = (b"\xff", b"\xed\xa0\x80", b"%FF%ED%A0%80", b"\xc3\x28")
PLACES = (
    b"GET /v1/models HTTP/1.1\r\nUser-Agent: %b\r\nAuthorization: Bearer %b",
    b"GET /v1/models/%b HTTP/1.1\r\nX-Real-IP: %b",
    b"GET /v1/images?q=%b HTTP/1.1\r\nCookie: %b\r\nX-Request-ID: %b",
)


def test_every_line_of_the_log_is_json_whatever_bytes_came(home: Path) -> None:
    with worker(home) as one:
        one.wait_ready()
        for place in PLACES:
            for odd in ODD:
                head = place.replace(b"%b", odd) + b"\r\nHost: x\r\nConnection: close\r\n\r\n"
                with socket.socket(socket.AF_UNIX) as raw:
                    raw.settimeout(30)
                    raw.connect(str(one.socket))
                    raw.sendall(head)
                    answer = raw.makefile("rb").read()
                assert answer.startswith(b"HTTP/1.1 ")
                assert not answer.startswith(b"HTTP/1.1 500")
        one.client.get("/v1/models/last")
        wait_until(lambda: b"/v1/models/last" in one.log.read_bytes(), one.tell)
    lines = [orjson.loads(line) for line in one.log.read_bytes().splitlines()]
    asked = [line for line in lines if line["event"] == "request"]
    # Uvicorn refuses a target that is no ASCII before there is a request; nginx counts it.
    assert len(asked) == len(ODD) + 2 + 1
