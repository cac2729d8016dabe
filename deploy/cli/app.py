"""``zimage``: the verbs of an operator. Exit code 0 done, 1 failed, 2 misuse."""

import os
import sys
from typing import Annotated

import typer

from deploy import installation
from deploy.cli import (
    backups,
    cell,
    chaos,
    configuration,
    jobs,
    keys,
    logs,
    status,
    usage,
    versions,
    workers,
)
from deploy.cli.failures import run
from deploy.host.utf8 import speak_utf8
from deploy.rollout import interrupts

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(keys.app, name="keys")
app.add_typer(jobs.app, name="jobs")
for _command in (
    usage.usage,
    chaos.chaos,
    versions.upgrade,
    versions.rollback,
    cell.up,
    cell.down,
    status.status,
    configuration.plan,
    configuration.render,
    configuration.reload,
    backups.backup,
    backups.restore,
    configuration.systemd,
    workers.drain,
    workers.undrain,
    workers.restart,
    logs.logs,
    workers.calibrate,
    workers.trace,
    status.doctor,
):
    app.command()(_command)


@app.callback()
def zimage(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=versions.show_version, help="Show the version."
        ),
    ] = False,
) -> None:
    """Run a cell: GPU workers behind nginx, kept alive by supervisord and a guard."""


def main() -> None:
    """Entry point: turns what may go wrong into one clear message and an exit code."""
    installation.hand_over(sys.argv[1:])
    speak_utf8()
    os.umask(0o077)  # logs, state and what programs inherit: this user's alone
    interrupts.install()
    sys.exit(run(app))


if __name__ == "__main__":
    main()
