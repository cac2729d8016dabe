"""``zimage backup`` and ``restore``: all that a cell knows, as one file."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Annotated

import typer

from deploy import backup as backups
from deploy import output
from deploy import restore as restores
from deploy.cell import Cell, CellError
from deploy.cli.failures import run
from deploy.cli.options import Config, open_cell
from deploy.dump import Server
from deploy.rollout import operation


def backup(
    file: Annotated[Path, typer.Argument(help="Where to; .gz compresses it.")],
    config: Config = None,
    images: Annotated[bool, typer.Option("--images", help="With the stored pictures.")] = False,
) -> None:
    """Write database, keys' secret and configuration to one file. The cell may run."""
    path = file.absolute()

    def write() -> None:
        cell = open_cell(config)
        done = backups.write(cell, out, images=images, compress=backups.is_compressed(path))
        if images:
            gone = f"; {done.deleted:,} were deleted meanwhile" if done.deleted else ""
            output.say(f"  pictures: {done.pictures}{gone}")
        if done.lost:
            output.warn(
                f"{len(done.lost):,} pictures of the gallery are nowhere, such as {done.lost[0]}: "
                "they may wait in the spool of another host. Their rows would not come back"
            )

    with backups.whole(path) as out:
        _in_child(write)
    output.done(f"{path}: {path.stat().st_size / 2**20:.1f} MiB; keep it secret")


def restore(
    file: Annotated[Path, typer.Argument(help="What `zimage backup` wrote.")],
    config: Config = None,
    drill: Annotated[
        bool, typer.Option("--drill", help="Only try it, aside; the cell may run.")
    ] = False,
    scratch: Annotated[
        str, typer.Option("--scratch", help="URL of an empty PostgreSQL database for the drill.")
    ] = "",
) -> None:
    """Put a backup back. The cell must be down; its present database is kept beside."""
    path = file.absolute()
    try:
        opened = path.open("rb")  # before root becomes the cell's user, who may not
    except OSError as error:
        raise CellError(f"{path} cannot be restored: {error.strerror}") from None
    with opened:
        cell = open_cell(config)
        if drill:
            _drill(cell, path, opened, scratch)
            return
        with operation.begin(cell, "restore", "restore"):
            done = restores.restore(cell, path, opened)
    output.done(f"restored {file}: database, pictures: {done.pictures}")
    if done.aside:
        output.say(f"  before   {done.aside}")
    output.say("  next     zimage up")


def _drill(cell: Cell, path: Path, opened: IO[bytes], scratch: str) -> None:
    output.step(f"put {path} back into a folder and a database that go again")
    done = restores.drill(cell, path, opened, Server(scratch, "--scratch") if scratch else None)
    for table, rows in sorted(done.tables.items()):
        output.say(f"  {table:<18}{rows:>12,} rows")
    if done.elsewhere:
        output.say(
            f"  {done.elsewhere:,} pictures that rows name are not in it (--images); "
            f"{done.found:,} of them are where pictures lie now"
        )
    if not done.fits:
        raise CellError(f"{path} has not the secret that its keys need: no key would fit")
    output.done(
        f"{path} can be restored: its rows came back, {done.pictures:,} pictures have their "
        "SHA-256, and its keys fit"
    )


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
