"""Files that are there whole or not at all, whatever ends the process that writes them."""

import os
import threading
from pathlib import Path


def write(path: Path, data: bytes, mode: int) -> None:
    """Put ``data`` where ``path`` says, in place of what was there. Folders that are missing are
    made, this user's alone."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Of this thread alone: others may write the same file at the same moment.
    fresh = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
