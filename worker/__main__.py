"""``python -m worker``: one worker process. Flags override ``ZIMAGE_…`` variables."""

import asyncio
import os
import socket
import sys

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from worker import code_digest, exits, listener, log, server
from worker.models.loading.sources import load
from worker.settings import Settings, problems


def main() -> int:
    """Run one worker to its end; returns the exit code (see ``worker/exits.py``)."""
    code_digest.own()
    try:
        settings = CliApp.run(Settings)
    except ValidationError as error:
        return _complain(problems(error), exits.BAD_SETTINGS)
    except SettingsError as error:
        return _complain([str(error)], exits.BAD_SETTINGS)
    try:
        listening = listener.listen(settings.socket, settings.lock, settings.lock_wait_s)
    except listener.SocketTaken as error:
        return _complain([str(error)], exits.SOCKET_FAILED)
    return _serve(settings, listening)


def _complain(lines: list[str], code: int) -> int:
    for line in lines:
        sys.stderr.write(f"worker: {line}\n")
    return code


def _serve(settings: Settings, listening: socket.socket) -> int:
    os.umask(0o077)
    writer = log.LogWriter(settings.name)
    log.event("started", pid=os.getpid(), model=settings.model, device=settings.device)
    try:
        # Not uvloop: it takes the interpreter's lock anew for each callback, and beside the threads
        # that draw and encode each time may be a wait; a request costs a fifth more.
        code = asyncio.run(server.serve(settings, load, listening))
        log.event("ended", code=code, why=exits.NAMES.get(code, "unknown"))
        return code
    finally:
        writer.close()


if __name__ == "__main__":
    code = main()
    # No interpreter shutdown: a thread that still loads, draws or writes to a pipe that nobody
    # reads would make it crash or wait. Both outputs are flushed line by line.
    os._exit(code)
