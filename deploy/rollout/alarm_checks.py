"""Whether alarms can reach anybody, each finding with its remedy."""

import json
from collections.abc import Iterator
from importlib import util
from typing import Any

import httpx

from deploy.cell import Cell
from deploy.finding import Finding
from deploy.layout import under_root

_TIMEOUT_S = 2.0


def before_up(cell: Cell) -> Iterator[Finding]:
    """What must hold before the relay starts."""
    if not cell.config.alarms.on:
        return
    if util.find_spec("apprise") is None:
        remedy = "pip install -c constraints.txt '.[alarms]', or empty alarms.to_file"
        yield Finding("fail", "alarms", "apprise is not installed", remedy)
        return
    from deploy.alarms import destinations  # only where it is installed

    try:
        destinations.read(under_root(cell.config.alarms.to_file))
    except destinations.DestinationsError as error:
        text, _, remedy = str(error).rpartition("; ")
        yield Finding("fail", "alarms", text, remedy)


def doctor(cell: Cell) -> Iterator[Finding]:
    """Whether Alertmanager is there, and whom the last alarm did not reach."""
    if not cell.config.alarms.on:
        return
    address = cell.config.alarms.alertmanager
    try:
        httpx.get(f"{address}/-/ready", timeout=_TIMEOUT_S).raise_for_status()
    except httpx.HTTPError as error:
        text = f"Alertmanager does not answer at {address}: {error or type(error).__name__}"
        remedy = f"run it with {cell.layout.monitoring_dir}/alertmanager.yml; docs/runbook.md"
        yield Finding("warn", "alarms", text, remedy)
        return
    failed = [shown for shown, told in outcomes(cell).items() if _failed_last(told)]
    for shown in failed:
        text = f"{shown} could not be told of the last alarm"
        yield Finding("warn", "alarms", text, "see zimage logs alarms; zimage alarm test")
    if not failed:
        yield Finding("ok", "alarms", f"Alertmanager answers at {address}")


def outcomes(cell: Cell) -> dict[str, dict[str, Any]]:
    """By destination, when it was told last and when that failed; empty before the first alarm."""
    try:
        found: dict[str, dict[str, Any]] = json.loads(cell.layout.told_json.read_bytes())
    except (OSError, ValueError):
        return {}
    return found


def _failed_last(told: dict[str, Any]) -> bool:
    return (told["failed_at"] or 0.0) > (told["told_at"] or 0.0)
