import errno
import os
import socket
from pathlib import Path

import pytest

from deploy.guard.gate import Gate, make_closed_socket
from deploy.layout import Layout


@pytest.fixture
def gate(layout: Layout) -> Gate:
    make_closed_socket(layout.closed_socket)
    return Gate(layout.gate("w1"), layout.socket("w1"), layout.closed_socket)


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_closed_gate_refuses(layout: Layout, gate: Gate) -> None:
    gate.prepare()
    with pytest.raises(ConnectionRefusedError):
        connect(layout.gate("w1"))


def test_open_gate_leads_to_the_worker(layout: Layout, gate: Gate) -> None:
    with socket.socket(socket.AF_UNIX) as worker:
        worker.bind(str(layout.socket("w1")))
        worker.listen()
        gate.open()
        connect(layout.gate("w1"))
    assert gate.is_open


def test_prepare_adopts_an_open_gate(gate: Gate) -> None:
    gate.open()
    gate.prepare()
    assert gate.is_open


def test_prepare_closes_a_gate_that_leads_elsewhere(layout: Layout, gate: Gate) -> None:
    layout.gate("w1").symlink_to("/elsewhere/w1.sock")
    gate.prepare()
    assert layout.gate("w1").readlink() == layout.closed_socket


def test_swap_leaves_no_other_file(layout: Layout, gate: Gate) -> None:
    gate.open()
    gate.close()
    assert [path.name for path in layout.pool_dir.iterdir()] == ["w1.sock"]


@pytest.fixture
def full_disk(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the guard's start: no new file and no new link."""
    gate.prepare()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "symlink", refuse)


@pytest.mark.usefixtures("full_disk")
def test_gate_opens_and_closes_on_a_full_disk(layout: Layout, gate: Gate) -> None:
    for _ in range(2):
        gate.open()
        gate.open()
        assert gate.is_open
        gate.close()
        gate.close()
        assert layout.gate("w1").readlink() == layout.closed_socket
    assert [path.name for path in layout.pool_dir.iterdir()] == ["w1.sock"]


@pytest.mark.usefixtures("full_disk")
def test_gate_that_cannot_be_closed_goes(layout: Layout, gate: Gate) -> None:
    gate.open()
    for spare in layout.run_dir.glob(".*.link"):
        spare.unlink()
    with pytest.raises(OSError, match="No space left"):
        gate.close()
    assert not gate.is_open
    assert not layout.gate("w1").is_symlink()


def test_closed_socket_is_made_once(layout: Layout) -> None:
    make_closed_socket(layout.closed_socket)
    before = layout.closed_socket.stat().st_ino
    make_closed_socket(layout.closed_socket)
    assert layout.closed_socket.stat().st_ino == before
