"""Secrets of a cell as files: made once, shared by its processes, readable by its user alone."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

Signing = Callable[[], tuple[bytes, ...]]
"""What is signed with now: the first signs, and all of them verify."""


def only(secret: bytes) -> Signing:
    """``secret``, for ever."""
    return lambda: (secret,)


_READS = 100  # more than anybody writes


def shared_secret(path: Path) -> bytes:
    """The secret at ``path``, made by whoever asks first."""
    if not path.exists():
        fresh = path.with_suffix(f".{os.getpid()}-{secrets.token_hex(4)}")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(fd)
        try:
            path.hardlink_to(fresh)  # fails where another process was faster
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return path.read_bytes()


def cluster_secrets(path: Path) -> tuple[bytes, ...]:
    """The secrets of a cluster, whose file is at ``path``: the first signs, and all of them verify.
    There are several while one takes the place of another. ``OSError`` where there is none."""
    others = _others(path)
    for _ in range(_READS):
        first = path.read_bytes()
        if (now := _others(path)) == others:
            break
        others = now  # the two were changed in between, and may belong to different moments
    return tuple(dict.fromkeys((first, *map(bytes.fromhex, others))))


def _others(path: Path) -> list[str]:
    try:
        return other_secrets(path).read_text(encoding="ascii").split()
    except FileNotFoundError:
        return []


def other_secrets(path: Path) -> Path:
    """The file of those that only verify: one a line, in hexadecimal."""
    return path.with_name(f"{path.name}.others")
