"""``zimage chaos``: break something on purpose, and see that the cell heals."""

import difflib
import os
import random
from typing import Annotated

import typer

from deploy import screen
from deploy.config import load
from deploy.options import Config, config_path
from loadtest import chaos as breaking
from loadtest.entry import KEY_VARIABLE
from loadtest.faults import Cell
from loadtest.faults.catalogue import FAULTS


def chaos(
    name: Annotated[str, typer.Argument(help="What to break; --list says what there is.")] = "",
    config: Config = None,
    worker: Annotated[str, typer.Option(help="Which to hit [default: any in the pool].")] = "",
    list_: Annotated[bool, typer.Option("--list", help="Say what there is.")] = False,
) -> None:
    """Break one thing of the running cell and wait until it is whole. Users should see nothing."""
    if list_:
        for known, fault in FAULTS.items():
            screen.say(f"{known:<20} {fault.what}")
        return
    _known(name)
    # Not as the user of the cell: some faults need root, and they say so.
    path = config_path(config)
    cell = Cell.of(load(path), path, os.environ.get(KEY_VARIABLE, ""))
    if reason := breaking.missing(cell, name, worker):
        screen.fail(f"{name}: {reason}")
        raise typer.Exit(1)
    screen.step(f"{name}: {FAULTS[name].what}")
    done = breaking.inject(
        cell, name, worker or random.choice(breaking.targets(cell, FAULTS[name]))
    )
    (screen.done if done.healed else screen.fail)(breaking.describe(done))
    raise typer.Exit(0 if done.healed else 1)


def _known(name: str) -> None:
    if name not in FAULTS:
        near = difflib.get_close_matches(name, FAULTS)
        hint = f"did you mean {near[0]}?" if near else "zimage chaos --list says what there is"
        raise typer.BadParameter(f"no fault {name!r}; {hint}" if name else hint)
