"""``python -m deploy.cluster <membership.json>``."""

import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from deploy.cluster.membership import Membership
from deploy.cluster.renewal import Member, keep
from deploy.cluster.settings import MembershipSettings, load
from deploy.layout import Layout
from worker import log
from worker.storage.database import Database

_TIMEOUT_S = 2.0

_log = logging.getLogger("membership")


def main(arguments: list[str]) -> int:
    """Exit code: 0 after SIGTERM, 2 for misuse."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m deploy.cluster <membership.json>\n")
        return 2
    path = Path(arguments[0])
    lines = log.LogWriter("membership")
    try:
        settings = load(path)
    except (OSError, ValidationError) as error:
        _log.error("cannot read %s: %s", path, error)
        lines.close()
        return 2
    try:
        asyncio.run(_take_part(settings))
    finally:
        lines.close()
    return 0


async def _take_part(settings: MembershipSettings) -> None:
    database = Database(settings.database_url, _TIMEOUT_S)
    member = Member(Layout(settings.var_dir, settings.run_dir), settings.host, settings.role)
    membership = Membership(settings, database)
    task = asyncio.gather(membership.run(), keep(member, database))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    _log.info("%s takes part in %s as %s", settings.host, settings.cluster, settings.role)
    with suppress(asyncio.CancelledError):
        await task
    await membership.end()
    database.close()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    os._exit(code)  # a database that hangs keeps a thread, which Python would wait for
