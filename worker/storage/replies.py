"""Large answers as files that nginx sends, so that they outlive their worker.

A unix socket takes some 200 KiB at once; the rest of an answer waits for the worker's event loop,
and a worker that dies meanwhile cuts it short after its header has passed, when nothing can be
replayed. A file is there whole before nginx hears of it. The guard deletes it: nginx opens it at
once, and what is open can still be read.
"""

import os
from pathlib import Path

from worker import log

MIN_BYTES = 64 << 10
"""Smaller answers go over the socket: it takes them in one piece."""


class ReplyStore:
    """``folder`` None: every answer goes over the socket."""

    def __init__(self, folder: Path | None, worker: str) -> None:
        self._folder = folder
        self._worker = worker

    def save(self, request_id: str, body: bytes) -> str | None:
        """Blocks. The name of the file that holds ``body``; None: send it over the socket."""
        if self._folder is None or len(body) < MIN_BYTES:
            return None
        # Attempts at one request on several workers must not write into one file.
        name = f"{request_id}-{self._worker}-{os.getpid()}.json"
        path = self._folder / name
        try:
            path.write_bytes(body)
        except OSError as error:
            path.unlink(missing_ok=True)
            log.failure("an answer cannot be stored and goes over the socket", error)
            return None
        return name
