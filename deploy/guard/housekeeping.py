"""Small chores that keep a cell bounded: old strikes go, nginx's logs are rotated."""

import json
import signal
import time
from contextlib import suppress
from pathlib import Path

from deploy.host import nginx_process


def prune(directory: Path, ttl_s: float) -> int:
    """Delete the files under ``directory`` that are older than ``ttl_s``, and folders that were
    empty for as long; how many went."""
    pruned, oldest = 0, time.time() - ttl_s
    # Deepest first. What is new, not empty or already gone stays as it is.
    for path in sorted(directory.rglob("*"), reverse=True):
        with suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.rmdir() if path.is_dir() else path.unlink()
                pruned += 1
    return pruned


def rotate(log: Path, max_bytes: int, keep: int) -> bool:
    """Move ``log`` to ``log.1`` and so on when it has ``max_bytes``; whether it was moved."""
    with suppress(FileNotFoundError):
        if log.stat().st_size < max_bytes:
            return False
        for n in range(keep - 1, 0, -1):
            with suppress(FileNotFoundError):
                Path(f"{log}.{n}").replace(f"{log}.{n + 1}")
        log.replace(f"{log}.1")
        return True
    return False


def reopen_logs(nginx_pid: Path, conf: Path) -> None:
    """Tell the nginx of ``conf`` that its logs were moved; it goes on writing to the old ones
    until then."""
    nginx_process.tell(nginx_pid, conf, signal.SIGUSR1)


def days_of_certificate(path: Path) -> float | None:
    """Days until the certificate described in ``path`` ends; None where there is none."""
    try:
        return float(
            (json.loads(path.read_text(encoding="utf-8"))["ends_at"] - time.time()) / 86_400
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
