"""``python -m deploy.guard <guard.json>``."""

import asyncio
import logging
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import uvloop
from pydantic import ValidationError

from deploy.guard.guard import Guard
from deploy.guard.journal import log_to_stdout
from deploy.guard.settings import GuardSettings, load
from worker.file_lock import try_lock

_log = logging.getLogger("guard")


def main(arguments: list[str]) -> int:
    """Exit code: 0 after SIGTERM, which leaves every gate as it is; 1 when the configuration
    vanished; 2 for misuse."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m deploy.guard <guard.json>\n")
        return 2
    log_to_stdout()
    path = Path(arguments[0])
    try:
        settings = load(path)
    except (OSError, ValidationError) as error:
        _log.error("cannot read %s: %s", path, error)
        return 2
    with (
        _only_guard(settings.run_dir / "guard.lock", path),
        # A fifth less of the processor than asyncio's own loop.
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_guard(settings, path))
    return 0 if path.exists() else 1


async def _guard(settings: GuardSettings, path: Path) -> None:
    task = asyncio.ensure_future(Guard(settings).run(path))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


def _only_guard(lock: Path, settings_path: Path) -> IO[str]:
    """Wait for a predecessor whose supervisord died: two guards would fight over the gates."""
    file = lock.open("w", encoding="utf-8")
    waited = False
    while settings_path.exists() and not try_lock(file):
        if not waited:
            _log.warning("another guard holds %s: waiting for its end", lock)
        waited = True
        time.sleep(0.2)
    return file


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
