"""nginx as supervisord starts it: ``python -m`` this module ``NGINX VAR_DIR CONF RECORD``.

nginx outlives a killed supervisord, and goes on serving. Its successor under the next supervisord
would find the port taken; stopping the old one first would refuse clients for a moment. So an
nginx that runs already is adopted: signals are passed on to it, and when it ends, this process
becomes the new nginx. Where only its worker processes are left (the master was killed), they are
told to finish their replies and to leave the port.

Which nginx is ours, RECORD says: the file of the cell's sessions, with the start times of their
leaders. The number in a pid file may be somebody else's by now, or that of another's group.
"""

import hashlib
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

from deploy.host import processes
from deploy.host.processes import Process

_POLL_S = 0.1
_PASSED_ON = (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def main(arguments: list[str]) -> int:
    nginx, var_dir, conf, record = arguments
    master = running_master(Path(record), conf)
    if master is not None and attend(master):
        return 0
    release_port(Path(record))
    note(Path(record), Path(nginx))
    return os.execv(nginx, [nginx, "-p", f"{var_dir}/", "-c", conf, "-e", "stderr"])


def running_master(record: Path, conf: str) -> Process | None:
    """The nginx of the cell that runs with ``conf``, if there is one."""
    return next((p for p in _nginxes(record, "master") if conf in p.command), None)


def digest(nginx: Path) -> str:
    """What tells one program from another that lies in its place."""
    return hashlib.sha256(nginx.read_bytes()).hexdigest()


def noted(record: Path) -> Path:
    """Where the digest of the program stands that was started last."""
    return record.with_name("nginx.applied")


def note(record: Path, nginx: Path) -> None:
    """Write it down. A full disk keeps nobody from starting."""
    with suppress(OSError):
        noted(record).write_text(digest(nginx), encoding="utf-8")


def attend(master: Process) -> bool:
    """Pass signals on until ``master`` ends; whether it was told to end."""
    print(f"nginx runs already as process {master.pid}: adopted", flush=True)  # noqa: T201
    told: list[int] = []

    def pass_on(signum: int, frame: FrameType | None) -> None:
        told.append(signum)
        master.send(signal.Signals(signum))

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    while master.alive:
        time.sleep(_POLL_S)
    for number, handler in before.items():
        signal.signal(number, handler)
    return bool({signal.SIGQUIT, signal.SIGTERM, signal.SIGINT} & set(told))


def release_port(record: Path) -> None:
    """Worker processes whose master is gone: finish what is open, listen no more."""
    if _nginxes(record, "master"):
        return
    left = _nginxes(record, "worker")
    for process in left:
        process.send(signal.SIGQUIT)
    if left:
        time.sleep(_POLL_S)


def _nginxes(record: Path, kind: str) -> list[Process]:
    return [p for p in processes.members(record) if p.command.startswith(f"nginx: {kind}")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
