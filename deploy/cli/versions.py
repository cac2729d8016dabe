"""`zimage upgrade`, `zimage rollback` and `zimage --version`."""

from typing import Annotated

import typer

from deploy import installation, output
from deploy.cli.options import Config, config_path
from deploy.rollout import upgrade as versions
from deploy.rollout.releases import Releases


def upgrade(
    version: Annotated[
        str, typer.Argument(metavar="VERSION|FILE", help="Such as 1.2.0, or a wheel of it.")
    ],
    config: Config = None,
) -> None:
    """Take the cell to another version. Worker after worker; back by itself where that fails."""
    versions.upgrade(version, config_path(config), Releases())


def rollback(config: Config = None) -> None:
    """Take the cell back to the version before. Worker after worker."""
    versions.rollback(config_path(config), Releases())


def show_version(wanted: bool) -> None:
    """What `--version` prints."""
    if wanted:
        kind = "release" if installation.IS_RELEASE else "code"
        output.say(f"zimage {installation.version()} ({kind} in {installation.ROOT})")
        raise typer.Exit
