"""``zimage cluster``: what several hosts share, and who may join them."""

from typing import Annotated

import typer

from deploy import output, store
from deploy.cell import Cell, CellError
from deploy.cli.options import Config, open_cell

app = typer.Typer(
    name="cluster", help="Several hosts as one platform: what they share.", no_args_is_help=True
)

_WITHOUT = (
    "this machine belongs to no cluster: write [cluster] with its name into {path}, beside "
    "[database] and [objects] (docs/hosts.md)"
)


@app.callback()
def cluster() -> None:
    """Several hosts as one platform: what they share."""


def open_member(config: Config, *, create: bool = False) -> Cell:
    """The cell of ``config``, which is part of a cluster; ``CellError``: it is not."""
    cell = open_cell(config, create=create)
    if not cell.config.cluster.on:
        raise CellError(_WITHOUT.format(path=cell.config_path))
    return cell


@app.command()
def init(
    config: Config = None,
    new_authority: Annotated[
        bool,
        typer.Option(
            "--new-authority",
            help="Make another one, where the key of the first is lost: every machine joins again.",
        ),
    ] = False,
) -> None:
    """Make this machine the first of its cluster, with the certificate authority of all."""
    from deploy.cluster import founding

    cell = open_member(config, create=True)
    cell.layout.create()
    store.migrate(cell)
    told = founding.found(cell, new_authority=new_authority)
    own = cell.config.cluster
    if told.made_authority:
        output.done(f"made the certificate authority of {own.name}")
    if told.signed:
        roles = " and ".join(f"as {role}" for role in told.signed)
        output.done(f"signed the certificate of {own.host_id} {roles}")
    if not (told.made_authority or told.signed):
        output.done(f"nothing to change: {own.name} has its authority here")
    output.say("  back up  where no host is, and as secret as the keys to the building:")
    for path in told.keep:
        output.say(f"           {path}")
    output.say("  next     zimage up · zimage hosts invite NAME")
