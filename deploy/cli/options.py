"""What all commands share: the options that name a cell, and opening it."""

from pathlib import Path
from typing import Annotated

import typer

from deploy import output
from deploy.cell import Cell
from deploy.config import DEFAULT_PATH, load
from deploy.host import account, processes
from deploy.installation import BASE
from deploy.rendering import certificate

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="ZIMAGE_CONFIG",
        help="cluster.toml of the cell [default: cluster.toml in the checkout or beside releases/, "
        "or deploy/cluster.toml where there is none]",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


def open_cell(config: Path | None, *, create: bool = False) -> Cell:
    """The cell of ``config``, as the user that it belongs to. ``create``: it may not be there."""
    path = config_path(config)
    loaded = load(path, output.warn)
    source = certificate.read(loaded.tls)
    warning = account.settle(loaded, path, create=create)
    if warning and create:
        output.warn(warning)
    cell = Cell(loaded, path, source)
    layout = cell.layout
    processes.adopt(layout.processes, layout.run_record, var_dir=str(layout.var_dir))
    return cell


def config_path(named: Path | None) -> Path:
    """The file that was named, or the installation's own, or the default."""
    own = BASE / "cluster.toml"
    return (named or (own if own.exists() else DEFAULT_PATH)).expanduser().resolve()


def own_config_path(named: Path | None) -> Path:
    """The file that was named, or the installation's own, whether or not it is there yet."""
    return (named or BASE / "cluster.toml").expanduser().resolve()
