"""nginx as supervisord starts it: ``python -m`` this module ``NGINX VAR_DIR CONF RECORD``.

This process starts nginx, stays beside it, passes signals on and ends when nginx does. nginx is
more than a child of supervisord's, for two things that clients must not notice:

- It outlives a killed supervisord, and goes on serving. Its successor under the next supervisord
  would find the port taken; stopping the old one first would refuse clients for a moment. So an
  nginx that runs already is adopted. Where only its worker processes are left (the master was
  killed), they are told to finish their replies and to leave the port.
- Its program is changed on disk. On SIGUSR2 the new one takes over the open sockets, and once it
  serves the old one finishes what it has. nginx ignores that under the parent that started it, so
  a process in between starts it, and ends.

Which nginx is ours, RECORD says: the file of the cell's sessions, with the start times of their
leaders. The number in a pid file may be somebody else's by now, or that of another's group.

A front has a small nginx for each host beside it, its links: whatever is in the process group of a
master with another CONF is none of ours.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

from deploy.host import processes
from deploy.host.processes import Process
from worker.coordination.processes import adopt_orphans

_POLL_S = 0.1
_START_TIMEOUT_S = 30.0
_HAND_OVER_TIMEOUT_S = 10.0
_BEGIN_S = 2.0
"""A new program that is not there by then has ended at once."""
_STABLE_S = 5.0
"""An nginx that ends sooner is left to supervisord, which waits longer before each new start."""
_ENDING = (signal.SIGQUIT, signal.SIGTERM, signal.SIGINT)
_PASSED_ON = (signal.SIGHUP, signal.SIGUSR1, *_ENDING)


def main(arguments: list[str]) -> int:
    nginx, var_dir, conf, record = arguments
    command = [nginx, "-p", f"{var_dir}/", "-c", conf, "-e", "stderr"]
    return Attendant(command, conf, Path(record)).attend()


class Attendant:
    def __init__(self, command: list[str], conf: str, record: Path) -> None:
        self._command, self._conf, self._record = command, conf, record
        self._master: Process | None = None
        self._told_to_end = False
        self._told_to_hand_over = False

    def attend(self) -> int:
        """Until nginx has ended; the exit code."""
        for number in _PASSED_ON:
            signal.signal(number, self._pass_on)
        signal.signal(signal.SIGUSR2, self._hand_over_soon)
        adopt_orphans()  # nginx, whose parent ends: so nobody else need reap it
        while not self._told_to_end:
            code = self._find_or_start()
            if self._master is None:
                return code
            began = time.monotonic()
            self._watch()
            if not self._told_to_end and time.monotonic() - began < _STABLE_S:
                return 1
        return 0

    def _find_or_start(self) -> int:
        masters = running_masters(self._record, self._conf)
        if masters:
            self._adopt(masters)
            return 0
        release_port(self._record, self._conf)
        note(self._record, Path(self._command[0]))
        code = _start(self._command)
        masters = running_masters(self._record, self._conf)
        self._master = masters[-1] if masters else None
        return code or 1

    def _adopt(self, masters: list[Process]) -> None:
        *old, self._master = masters
        _say(f"nginx runs already as process {self._master.pid}: adopted")
        if old and self._serves(self._master):  # whoever handed over was killed before the end
            self._finish(old)

    def _watch(self) -> None:
        while self._master is not None and self._master.alive:
            if self._told_to_hand_over:
                self._told_to_hand_over = False
                self._hand_over(self._master)
            time.sleep(_POLL_S)
            _reap()

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        self._told_to_end |= signum in _ENDING
        if self._master is not None:
            self._master.send(signal.Signals(signum))

    def _hand_over_soon(self, signum: int, frame: FrameType | None) -> None:
        self._told_to_hand_over = True

    def _hand_over(self, old: Process) -> None:
        """To the program that lies there now; ``old`` goes on where that one does not serve."""
        before = running_masters(self._record, self._conf)
        begun_by = time.monotonic() + _BEGIN_S
        found: list[Process] = []

        def settled() -> bool:
            masters = running_masters(self._record, self._conf)
            found[:] = [p for p in masters if p not in before and self._serves(p)]
            return bool(found) or (time.monotonic() > begun_by and not self._begins(old))

        old.send(signal.SIGUSR2)
        processes.wait_for(settled, _HAND_OVER_TIMEOUT_S)
        if not found:
            _say(f"nginx's new program does not take over: process {old.pid} goes on")
            return
        self._master = found[-1]
        note(self._record, Path(self._command[0]))
        _say(f"process {self._master.pid} serves now, {old.pid} finishes what it has")
        self._finish(before)

    def _begins(self, old: Process) -> bool:
        """Whether ``old`` has another child than its workers: the new program, as it starts."""
        children = [p for p in processes.members(self._record) if p.parent == old.pid]
        return any(not p.command.startswith(("nginx: worker", "nginx: cache")) for p in children)

    def _serves(self, master: Process) -> bool:
        living = processes.members(self._record)
        return any(p.parent == master.pid and _is(p, "worker") for p in living)

    def _finish(self, masters: list[Process]) -> None:
        for master in masters:
            master.send(signal.SIGQUIT)


def running_masters(record: Path, conf: str) -> list[Process]:
    """Those of the cell that run with ``conf``, the youngest last: while a program hands over, and
    until the old one has finished its replies, there are two."""
    living = processes.members(record)
    found = [p for p in living if _is(p, "master") and conf in p.command]
    pids, parents = {p.pid for p in found}, {p.parent for p in living}
    # A worker process that was just forked has its master's title still, and no children.
    masters = [p for p in found if p.parent not in pids or p.pid in parents]
    return sorted(masters, key=lambda process: process.started)


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


def release_port(record: Path, conf: str) -> None:
    """Worker processes whose master is gone: finish what is open, listen no more."""
    living = processes.members(record)
    masters = [p for p in living if _is(p, "master")]
    if any(conf in p.command for p in masters):
        return
    of_others = {p.group for p in masters}
    left = [p for p in living if _is(p, "worker") and p.group not in of_others]
    for process in left:
        process.send(signal.SIGQUIT)
    if left:
        time.sleep(_POLL_S)


def _start(command: list[str]) -> int:
    """Start nginx from a process that ends once it runs; its exit code where it does not run."""
    between = os.fork()
    if between == 0:
        code = 1
        try:
            code = _until_it_runs(command)
        finally:
            os._exit(code)
    _, status = os.waitpid(between, 0)
    return os.waitstatus_to_exitcode(status)


def _until_it_runs(command: list[str]) -> int:
    nginx = subprocess.Popen(command)

    def settled() -> bool:
        return nginx.poll() is not None or _title(nginx.pid).startswith("nginx: master")

    if not processes.wait_for(settled, _START_TIMEOUT_S, every_s=0.01):
        nginx.kill()
        return 1
    return abs(nginx.poll() or 0)


def _title(pid: int) -> str:
    found = processes.read(pid)
    return found.command if found is not None else ""


def _is(process: Process, kind: str) -> bool:
    return process.command.startswith(f"nginx: {kind}")


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
