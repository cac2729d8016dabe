"""What cluster.toml makes of a machine: its plan, the rendered files, the certificate, the unit."""

import getpass
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from deploy import links, output
from deploy.cell import CellError
from deploy.cli.options import AsJson, Config, open_cell
from deploy.rollout import converge, files, operation, relink
from deploy.rollout.unit import render_unit


def plan(config: Config = None, as_json: AsJson = False) -> None:
    """Show which workers cluster.toml makes on this machine, and why; on a front, its hosts."""
    cell = open_cell(config)
    if as_json:
        output.as_json([asdict(w) for w in cell.plan.workers])
        return
    for worker in cell.plan.workers:
        limit = f", {worker.vram_limit_gib:g} GiB" if worker.vram_limit_gib else ""
        threads = f"{worker.threads} thread{'s' if worker.threads > 1 else ''}"
        model = f"{worker.model}  " if worker.model else ""
        where = f"{worker.device_name}{limit}, {threads}"
        output.say(f"{worker.name}  {model}{where}  ({worker.reason})")
    held = links.read(cell.layout)
    for link in cell.plan.links:
        if link.name in held:
            host = held[link.name]
            output.say(f"{link.name}  host {host.host} at {host.address}, weight {link.weight}")
    if cell.plan.links:
        spare = sum(link.name not in held for link in cell.plan.links)
        output.say(f"{spare} places for hosts that join")


def render(
    config: Config = None,
    to: Annotated[
        Path | None, typer.Option(help="Write the files into this directory instead.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only ask nginx whether it takes them.")
    ] = False,
) -> None:
    """Show what `up` would change in the rendered files. No running cell is touched."""
    cell = open_cell(config)
    rendered = cell.render()
    if check:
        cell.layout.create()
        files.check_nginx(cell, rendered)
        output.done(
            f"nginx {'.'.join(map(str, cell.host.nginx_version))} takes the rendered configuration"
        )
        return
    if to is not None:
        to.mkdir(parents=True, exist_ok=True)
        files.write(to, rendered)
        output.done(f"{len(rendered)} files in {to}")
        return
    changes = files.changes(cell.layout.render_dir, rendered)
    for change in changes:
        output.step(change.summary)
        output.say("\n".join(f"    {line}" for line in change.shown))
    if not changes:
        output.done(f"{cell.layout.render_dir} is up to date")


def reload(
    config: Config = None,
    links_only: Annotated[
        bool,
        typer.Option("--links", help="Make links for hosts that joined, as fronts do themselves."),
    ] = False,
) -> None:
    """Take on a renewed certificate (certbot's deploy hook). Nothing restarts or ends."""
    cell = open_cell(config)
    if links_only:
        changed = relink.relink(cell)
        output.done("links made" if changed else "each host has its link, and spare ones are left")
        return
    if cell.certificate is None:
        raise CellError("tls: this cell speaks plain http; see [tls] in deploy/cluster.toml")
    with operation.begin(cell, "reload", "reload"):
        changed = converge.take_certificate(cell)
    until = f"{', '.join(cell.certificate.names)}, until {cell.certificate.ends:%Y-%m-%d}"
    output.done(f"{'new certificate' if changed else 'the same certificate'}: {until}")


def systemd(config: Config = None) -> None:
    """Print a unit that runs the cell from boot on. It runs as whoever prints it."""
    user = "" if os.getuid() == 0 else getpass.getuser()
    output.raw(render_unit(open_cell(config), user) + "\n")
