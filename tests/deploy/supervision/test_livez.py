"""What a worker says of itself, or nothing."""

from pathlib import Path

import httpx
import pytest

from deploy.guard.gate import make_closed_socket
from deploy.layout import Layout
from deploy.supervision.livez import livez
from tests.deploy.processes import ask
from tests.deploy.supervision.test_rpc import answering


def open_files() -> set[str]:
    return {file.name for file in Path("/proc/self/fd").iterdir()}


def test_answer_of_a_worker_is_read(tmp_path: Path) -> None:
    with answering(tmp_path / "s", b'HTTP/1.0 200 OK\r\n\r\n{"pid": 7}'):
        assert livez(tmp_path / "s") == {"pid": 7}


@pytest.mark.parametrize("answer", [b"", b"\x00\x01", b"HTTP/1.0 200 OK\r\n\r\n{"])
def test_half_an_answer_is_none(tmp_path: Path, answer: bytes) -> None:
    with answering(tmp_path / "s", answer):
        assert livez(tmp_path / "s") == {}


def test_whoever_is_refused_leaves_no_socket_open(tmp_path: Path) -> None:
    layout = Layout(tmp_path, tmp_path / "run")
    layout.create()
    make_closed_socket(layout.socket("w1"))
    before = open_files()
    assert livez(layout.socket("w1")) == {}
    with pytest.raises(httpx.TransportError) as refused:
        ask(layout, "w1", "GET", "/readyz")
    assert open_files() == before, refused
