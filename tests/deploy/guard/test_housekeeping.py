import os
import signal
import subprocess
import time
from pathlib import Path

from deploy.guard.housekeeping import prune, reopen_logs, rotate
from tests.deploy.processes import wait_until


def test_only_what_is_old_is_pruned(tmp_path: Path) -> None:
    for name, age_s in (("one/old", 700.0), ("one/new", 10.0), ("two/old", 700.0)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    assert prune(tmp_path, ttl_s=600.0) == 2
    # A folder that became empty just now goes the next time.
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "one", "two"]


def test_folder_that_stayed_empty_is_pruned(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    os.utime(tmp_path / "empty", (time.time() - 700.0,) * 2)
    assert prune(tmp_path, ttl_s=600.0) == 1


def test_missing_directory_has_nothing_to_prune(tmp_path: Path) -> None:
    assert prune(tmp_path / "missing", ttl_s=1.0) == 0


def test_full_log_moves_up_and_the_oldest_goes(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    for text in ("first", "second", "third"):
        log.write_text(text)
        assert rotate(log, max_bytes=5, keep=2)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "access.log.1": "third",
        "access.log.2": "second",
    }


def test_small_or_missing_log_stays(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    assert not rotate(log, max_bytes=5, keep=2)
    log.write_text("tiny")
    assert not rotate(log, max_bytes=5, keep=2)


def test_pid_of_something_else_gets_no_signal(tmp_path: Path) -> None:
    """Not even another nginx's."""
    pid_file, conf = tmp_path / "nginx.pid", tmp_path / "nginx.conf"
    reopen_logs(pid_file, conf)
    pid_file.write_text(str(os.getpid()))
    reopen_logs(pid_file, conf)  # SIGUSR1 would end this process
    title = f"nginx: master process nginx -c {tmp_path}/other.conf"
    with subprocess.Popen(["/bin/bash", "-c", 'exec -a "$0" sleep 60', title]) as other:
        pid_file.write_text(str(other.pid))
        wait_until(lambda: read(other.pid, title), "another nginx")
        reopen_logs(pid_file, conf)
        assert other.poll() is None
        reopen_logs(pid_file, tmp_path / "other.conf")  # it is this one's
        assert other.wait(10) == -signal.SIGUSR1


def read(pid: int, title: str) -> bool:
    return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").startswith(title)
