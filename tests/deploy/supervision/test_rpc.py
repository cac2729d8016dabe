"""Answers of a supervisord that dies while it gives them."""

import socket
import threading
import xmlrpc.client
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.supervision import rpc

BODY = xmlrpc.client.dumps(({"statename": "RUNNING"},), methodresponse=True).encode()


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """Somebody who gives ``answer`` to the first question and hangs up."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def answer_once() -> None:
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as question:
                # The whole of it: whoever hangs up on a rest is asked again by xmlrpc.client.
                head = iter(question.readline, b"\r\n")
                fields = dict(line.lower().split(b":", 1) for line in head if b":" in line)
                question.read(int(fields.get(b"content-length", 0)))
                connection.sendall(answer)

        thread = threading.Thread(target=answer_once)
        thread.start()
        yield
        thread.join(10)


def answer(body: bytes) -> bytes:
    return b"HTTP/1.0 200 OK\r\nContent-Type: text/xml\r\n\r\n" + body


def test_whole_answer_is_read(tmp_path: Path) -> None:
    with answering(tmp_path / "s", answer(BODY)):
        assert rpc.call(tmp_path / "s", 5.0, "supervisor.getState") == {"statename": "RUNNING"}


@pytest.mark.parametrize("length", [0, 1, len(BODY) // 3, len(BODY) // 2, len(BODY) - 20])
def test_half_an_answer_is_none(tmp_path: Path, length: int) -> None:
    with answering(tmp_path / "s", answer(BODY[:length])), pytest.raises(rpc.NoAnswer):
        rpc.call(tmp_path / "s", 5.0, "supervisor.getState")


def test_answer_that_is_no_http_is_none(tmp_path: Path) -> None:
    with answering(tmp_path / "s", b"\x00\x01"), pytest.raises(rpc.NoAnswer):
        rpc.call(tmp_path / "s", 5.0, "supervisor.getState")
