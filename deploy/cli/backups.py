"""``zimage backup`` and ``restore``: all that a cell knows, as one file."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from deploy import backup as backups
from deploy import output
from deploy.cell import CellError
from deploy.cli.failures import run
from deploy.cli.options import Config, open_cell
from deploy.rollout import operation


def backup(
    file: Annotated[Path, typer.Argument(help="Where to; .gz compresses it.")],
    config: Config = None,
    images: Annotated[bool, typer.Option("--images", help="With the stored pictures.")] = False,
) -> None:
    """Write database, keys' secret and configuration to one file. The cell may run."""
    path = file.absolute()

    def write() -> None:
        count = backups.write(
            open_cell(config), out, images=images, compress=backups.is_compressed(path)
        )
        if images:
            output.say(f"  pictures: {count}")

    with backups.whole(path) as out:
        _in_child(write)
    output.done(f"{path}: {path.stat().st_size / 2**20:.1f} MiB; keep it secret")


def restore(
    file: Annotated[Path, typer.Argument(help="What `zimage backup` wrote.")],
    config: Config = None,
) -> None:
    """Put a backup back. The cell must be down; its present database is kept beside."""
    path = file.absolute()
    try:
        opened = path.open("rb")  # before root becomes the cell's user, who may not
    except OSError as error:
        raise CellError(f"{path} cannot be restored: {error.strerror}") from None
    with opened:
        cell = open_cell(config)
        with operation.begin(cell, "restore", "restore"):
            done = backups.restore(cell, path, opened)
    output.done(f"restored {file}: database, pictures: {done.pictures}")
    if done.aside:
        output.say(f"  before   {done.aside}")
    output.say("  next     zimage up")


def _in_child(work: Callable[[], None]) -> None:
    """Do ``work``, which may become another user, while this process stays who it is."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = run(work)
        sys.stdout.flush()
        os._exit(code)
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    if code:
        raise typer.Exit(code if code > 0 else 1)
