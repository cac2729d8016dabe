"""``zimage up --join -``: this machine becomes part of a cluster, and then goes on as ``up``."""

import re
from pathlib import Path

import typer

from deploy import output
from deploy.cli.options import open_cell, own_config_path
from deploy.cluster import joining
from deploy.cluster.invites import Token
from deploy.config import patterns
from deploy.layout import Layout


def join_cluster(config: Path | None, text: str, address: str) -> Path:
    """Join with the token ``text``; the ``cluster.toml`` that is there then. Again, with the token
    that it joined with, the machine stays as it is."""
    if address and not re.fullmatch(patterns.HOST_AND_PORT, address):
        raise typer.BadParameter(f'--address "{address}" {patterns.WORDS[patterns.HOST_AND_PORT]}')
    token, path = Token.of(text), own_config_path(config)
    if joining.has_joined(Layout.of(joining.config_before(path)), token):
        output.done(f"this machine has joined as {token.host} with this token")
        return path
    output.step(f"knock at {token.door} to join as {token.host}")
    joined = joining.join(path, token, address)
    cell = open_cell(path, create=True)  # from here on as the cell's own user
    cell.layout.create()
    joining.settle(cell.layout, joined)
    output.done(f"joined {joined.welcome.cluster}; {path} says so")
    return path
