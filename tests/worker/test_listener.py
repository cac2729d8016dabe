import os
import socket
from pathlib import Path

import pytest

from worker.listener import SocketTaken, listen


def test_socket_is_bound_for_its_owner_alone(home: Path) -> None:
    with listen(home / "w1.sock", home / "w1.lock", 0) as listening:
        assert listening.getsockname() == str(home / "w1.sock")
        assert (home / "w1.sock").stat().st_mode & 0o777 == 0o600
        assert (home / "w1.lock").read_text() == f"{os.getpid()}\n"


def test_lock_is_opened_before_the_socket(home: Path) -> None:
    with listen(home / "w1.sock", home / "w1.lock", 0) as listening:
        lock = next(int(fd.name) for fd in _own_fds() if fd.readlink() == home / "w1.lock")
        assert lock < listening.fileno()


def _own_fds() -> list[Path]:
    return [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]


def test_stale_socket_file_is_replaced(home: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home / "w1.sock"))
    with listen(home / "w1.sock", home / "w1.lock", 0), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(home / "w1.sock"))


def test_held_lock_is_waited_for_and_then_told(home: Path) -> None:
    with (
        listen(home / "w1.sock", home / "w1.lock", 0),
        pytest.raises(SocketTaken, match=f"held by another worker .*pid {os.getpid()}"),
    ):
        listen(home / "w1.sock", home / "w1.lock", 0.1)


def test_folder_that_cannot_be_made_is_told(home: Path) -> None:
    (home / "run").write_text("a file")
    with pytest.raises(SocketTaken, match="check run_dir"):
        listen(home / "run" / "w1.sock", home / "run" / "w1.lock", 0)
