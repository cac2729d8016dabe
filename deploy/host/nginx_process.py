"""Signals for the nginx of one cell and its links, and for no other process."""

import os
from pathlib import Path

from deploy.layout import Layout


def tell(pid_file: Path, conf: Path, signal: int) -> bool:
    """Send ``signal`` to the nginx of ``conf``; whether there is one."""
    try:
        pid = int(pid_file.read_text(encoding="utf-8"))
        # The number may be another process's by now, even another nginx's.
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if not command.startswith(b"nginx: master") or os.fsencode(conf) not in command:
            return False
        os.kill(pid, signal)
    except (OSError, ValueError):
        return False
    return True


def links_of(layout: Layout) -> list[tuple[Path, Path]]:
    """The pid file and configuration of each link that a front has or had."""
    confs = sorted(layout.links_dir.glob("h*.conf"))
    return [(layout.link_pid(conf.stem), conf) for conf in confs]
