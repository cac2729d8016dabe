"""The links of a front made anew, and nothing else: by its guard, while nobody looks on."""

import json
from dataclasses import replace

from deploy.cell import Cell, CellError
from deploy.host import processes
from deploy.rendering.plan import link_plans
from deploy.rendering.render import render
from deploy.rollout import converge, files, operation


def relink(cell: Cell) -> bool:
    """Have a link for each host and eight spare ones; whether any was added or taken away.

    ``CellError``, with what runs untouched, where that would take on more than links: what somebody
    has changed waits for him.
    """
    if not cell.config.cluster.fronts:
        raise CellError("this machine is no front, and has no links to hosts")
    before = operation.last(cell)
    if before is not None and before.unfinished and before.kind != "reload":
        raise CellError(f"a command did not end: {operation.in_words(before)}")
    with operation.begin(cell, "reload", "reload --links") as rollout:
        if processes.leader(cell.layout.processes) is None:
            raise CellError("nothing runs here: zimage up")
        _require_all_else_as_it_is(cell)
        rendered = cell.render()
        files.check_nginx(cell, rendered)
        return converge.apply(rollout, rendered)


def _require_all_else_as_it_is(cell: Cell) -> None:
    layout = cell.layout
    try:
        told = json.loads(layout.guard_json.read_bytes())["front"]
        present = link_plans(told["links"], told["weights"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CellError(f"{layout.guard_json} tells of no links: zimage up") from error
    serves = {link: tuple(pools) for link, pools in told.get("serves", {}).items()}
    before = replace(cell.plan, links=present, serves=serves)
    same = render(cell.config, before, layout, cell.host)
    if changes := files.changes(layout.render_dir, same):
        names = ", ".join(change.name for change in changes[:3])
        raise CellError(f"more than links has changed ({names}) and waits for: zimage up")
