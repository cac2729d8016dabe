"""``python -m deploy.nginx_program NGINX VAR_DIR CONF PIDFILE``: nginx as supervisord starts it.

nginx outlives a killed supervisord, and goes on serving. Its successor under the next supervisord
would find the port taken; stopping the old one first would refuse clients for a moment. So an
nginx that runs already is adopted: signals are passed on to it, and when it ends, this process
becomes the new nginx. Where only its worker processes are left (the master was killed), they are
told to finish their replies and to leave the port.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

_POLL_S = 0.1
_PASSED_ON = (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def main(arguments: list[str]) -> int:
    nginx, var_dir, conf, pidfile = arguments
    master = running_master(Path(pidfile), conf)
    if master is None or not attend(master):
        release_port(Path(pidfile))
        os.execv(nginx, [nginx, "-p", f"{var_dir}/", "-c", conf, "-e", "stderr"])
    return 0


def running_master(pidfile: Path, conf: str) -> int | None:
    """The pid of the nginx that runs with ``conf``, if there is one."""
    pid = _pid(pidfile)
    command = _command(pid) if pid else ""
    return pid if command.startswith("nginx: master") and conf in command else None


def attend(master: int) -> bool:
    """Pass signals on until ``master`` ends; whether it was told to end."""
    print(f"nginx runs already as process {master}: adopted", flush=True)  # noqa: T201
    told: list[int] = []

    def pass_on(signum: int, frame: FrameType | None) -> None:
        told.append(signum)
        with suppress(ProcessLookupError):
            os.kill(master, signum)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    while _command(master).startswith("nginx: master"):
        time.sleep(_POLL_S)
    for number, handler in before.items():
        signal.signal(number, handler)
    return bool({signal.SIGQUIT, signal.SIGTERM, signal.SIGINT} & set(told))


def release_port(pidfile: Path) -> None:
    """Worker processes whose master is gone: finish what is open, listen no more."""
    pid = _pid(pidfile)
    if pid is not None and not _command(pid):
        with suppress(ProcessLookupError, PermissionError):
            # Their group still has the dead master's number, so that nobody else can have it.
            os.killpg(pid, signal.SIGQUIT)
            time.sleep(_POLL_S)


def _pid(pidfile: Path) -> int | None:
    try:
        return int(pidfile.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (OSError, UnicodeDecodeError):
        return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
