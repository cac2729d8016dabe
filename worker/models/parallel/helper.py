"""The process of one more card of a worker: ``python -m`` this module ``COMMANDS BEATS PARENT``.

A worker starts it (``team``); the arguments are file descriptors and the worker's pid. It computes
its share of each step until the worker closes the connection or is gone.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from worker import exits, log
from worker.coordination import gpu_lock, processes
from worker.models.loading.sources import load_share
from worker.models.parallel.team import BEAT_S, Command, Reply, Start

if TYPE_CHECKING:
    from worker.models.parallel.split import HelpersShare


def main() -> int:
    """Help until the end; returns the exit code."""
    commands, beats, parent = (int(argument) for argument in sys.argv[1:])
    if not processes.end_with(parent):
        return 0
    # supervisor's stop reaches the whole group: the lead drains, and then closes the connection.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_heartbeat, args=[beats], name="beat", daemon=True).start()
    connection = Connection(commands)
    start: Start = connection.recv()
    writer = log.LogWriter(os.environ["ZIMAGE_NAME"])
    try:
        return _help(connection, start)
    finally:
        writer.close()


def _heartbeat(file: int) -> None:
    while True:
        os.write(file, b".")
        time.sleep(BEAT_S)


def _help(connection: Connection, start: Start) -> int:
    try:
        share = _loaded(start, connection)
    except Exception as error:
        log.failure("share of the model failed to load", error, why=str(error))
        with contextlib.suppress(OSError):  # the lead has failed, too
            connection.send(Reply(str(error) or type(error).__name__))
        return exits.MODEL_FAILED
    connection.send(Reply())
    with contextlib.suppress(EOFError, OSError):  # the lead has closed it
        while True:
            command: Command = connection.recv()
            connection.send(share.obey(command))
    return 0


def _loaded(start: Start, connection: Connection) -> "HelpersShare":
    gpu_lock.pin(start.settings.device)
    with gpu_lock.card(start.settings, rank=start.rank):
        return load_share(start, lambda: connection.send(Reply()))


if __name__ == "__main__":
    code = main()
    os._exit(code)  # as a worker ends: no library's thread may keep it
