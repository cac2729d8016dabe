"""``zimage logs``: what the programs of a cell wrote."""

from pathlib import Path
from typing import Annotated

import typer

from deploy import output
from deploy.cell import Cell
from deploy.cli.options import Config, open_cell


def logs(
    program: Annotated[
        str | None,
        typer.Argument(help="A worker, guard, nginx, nginx-error, access or supervisord."),
    ] = None,
    config: Config = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the end.")] = 40,
) -> None:
    """Show the end of the cell's logs."""
    cell = open_cell(config)
    paths = _logs(cell, program)
    options = ["-n", str(lines), *(["-F"] if follow else [])]
    raise typer.Exit(output.lines_of(["tail", *options, *map(str, paths)]))


def _logs(cell: Cell, program: str | None) -> list[Path]:
    present = {p.stem: p for p in sorted(cell.layout.logs_dir.glob("*.log"))}
    if program is None and present:
        return [path for name, path in present.items() if name != "access"]
    if program in present:
        return [present[program]]
    known = ", ".join(present) or "none yet"
    raise typer.BadParameter(f"no log {program or ''}; there are: {known}")
