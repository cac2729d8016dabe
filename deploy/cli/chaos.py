"""``zimage chaos``: break something on purpose, and see that the cell heals."""

import difflib
import os
import random
from collections.abc import Collection
from typing import Annotated

import typer

from deploy import output
from deploy.cli.options import Config, config_path
from deploy.config import load


def chaos(
    name: Annotated[str, typer.Argument(help="What to break; --list says what there is.")] = "",
    config: Config = None,
    worker: Annotated[str, typer.Option(help="Which to hit [default: any in the pool].")] = "",
    list_: Annotated[bool, typer.Option("--list", help="Say what there is.")] = False,
) -> None:
    """Break one thing of the running cell and wait until it is whole. Users should see nothing."""
    # Here, for no other verb needs what breaks a cell.
    from loadtest import chaos as breaking
    from loadtest.auth import KEY_VARIABLE
    from loadtest.faults import Cell
    from loadtest.faults.catalogue import FAULTS

    if list_:
        for known, fault in FAULTS.items():
            output.say(f"{known:<20} {fault.what}")
        return
    _require(name, FAULTS)
    # Not as the user of the cell: some faults need root, and they say so.
    path = config_path(config)
    cell = Cell.of(load(path), path, os.environ.get(KEY_VARIABLE, ""))
    if reason := breaking.missing(cell, name, worker):
        output.fail(f"{name}: {reason}")
        raise typer.Exit(1)
    output.step(f"{name}: {FAULTS[name].what}")
    done = breaking.inject(
        cell, name, worker or random.choice(breaking.targets(cell, FAULTS[name]))
    )
    (output.done if done.healed else output.fail)(breaking.describe(done))
    raise typer.Exit(0 if done.healed else 1)


def _require(name: str, known: Collection[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known)
        hint = f"did you mean {near[0]}?" if near else "zimage chaos --list says what there is"
        raise typer.BadParameter(f"no fault {name!r}; {hint}" if name else hint)
