"""``zimage cluster``: what several hosts share, and who may join them."""

import time
from pathlib import Path
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


rotate = typer.Typer(
    name="rotate",
    help="Put a new secret or a new authority in the place of the present one, under load.",
    no_args_is_help=True,
)
app.add_typer(rotate)

Timeout = Annotated[
    float, typer.Option("--timeout", min=1, metavar="SECONDS", help="For each step to be done.")
]


@rotate.command("secret")
def rotate_secret(config: Config = None, timeout_s: Timeout = 600.0) -> None:
    """Sign links, places and sign-ins with a new secret once every machine knows it."""
    from deploy.cluster import rotation

    cell = open_member(config)
    ends_at = rotation.rotate_secret(cell, output.step, timeout_s)
    clock = time.strftime("%H:%M:%S", time.localtime(ends_at))
    output.done(f"signing with the new secret; what the old one signed ends at {clock}")
    output.say(f"  back up  {cell.layout.cluster_secret}")


@rotate.command("authority")
def rotate_authority(config: Config = None, timeout_s: Timeout = 600.0) -> None:
    """Put a new certificate authority in the place of the present one."""
    from deploy.cluster import rotation

    cell = open_member(config)
    rotation.rotate_authority(cell, output.step, timeout_s)
    output.done("every certificate is of the new authority, and nobody trusts the old one")
    output.say(f"  back up  {cell.layout.authority_key}")


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


Folder = Annotated[
    Path,
    typer.Argument(metavar="FOLDER", help="With ca.key, key-secret and secret of the cluster."),
]


@app.command()
def authority(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="To write them into.")],
    name: Annotated[str, typer.Option(help="Of the cluster.")] = "zimage",
) -> None:
    """Make an authority and secrets as files, for a cluster of pods (Kubernetes)."""
    from deploy.cluster import enrolment

    made = enrolment.make(folder, name)
    output.done(f"made {', '.join(path.name for path in made)} in {folder}")
    output.say("  back up  where no host is, and as secret as the keys to the building")
    output.say(f"  next     kubectl create secret generic NAME --from-file={folder}")


@app.command()
def enrol(folder: Folder, config: Config = None) -> None:
    """Take this machine into its cluster by the authority's own key, as pods do at their start."""
    from deploy.cluster import enrolment

    cell = open_member(config, create=True)
    cell.layout.create()
    store.migrate(cell)
    signed = enrolment.enrol(cell, folder)
    own = cell.config.cluster
    if signed:
        roles = " and ".join(f"as {role}" for role in signed)
        output.done(f"signed the certificate of {own.host_id} {roles}")
    else:
        output.done(f"nothing to change: {own.host_id} belongs to {own.name}")


@app.command()
def sign(folder: Folder, config: Config = None) -> None:
    """Sign the certificates that machines ask for, where none has the authority's key."""
    from deploy.cluster import enrolment

    cell = open_member(config, create=True)
    cell.layout.create()
    output.done(f"certificates signed: {enrolment.sign(cell, folder)}")
