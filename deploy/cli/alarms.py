"""``zimage alarm``: whether alarms reach anybody."""

import secrets
import time
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import httpx
import typer

from deploy import output
from deploy.alarms.message import TEST
from deploy.cell import Cell, CellError
from deploy.cli.options import Config, open_cell
from deploy.layout import under_root
from deploy.rollout import alarm_checks

app = typer.Typer(name="alarm", help="Whether alarms reach anybody.", no_args_is_help=True)

_LOOK_S = 0.2


@app.callback()
def alarm() -> None:
    """Whether alarms reach anybody."""


@app.command("test")
def send_test(
    config: Config = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds until whoever was not told is named.")
    ] = 60.0,
) -> None:
    """Raise an alarm that means nothing, and wait until everybody was told of it.

    It goes the way of all alarms: to Alertmanager, to the cell, to each destination.
    """
    cell = open_cell(config)
    _require(cell)
    mark = secrets.token_hex(4)
    _raise(cell, mark)
    output.step(f"alarm {mark} is with {cell.config.alarms.alertmanager}")
    waiting = set(_destinations(cell))
    for shown in _reached(cell, mark, waiting, timeout_s):
        output.say(f"✓ {shown}")
        waiting.discard(shown)
    if waiting:
        for shown in sorted(waiting):
            output.say(f"✗ {shown}")
        raise CellError(
            f"{len(waiting)} of {len(_destinations(cell))} were not told in {timeout_s:g} s; "
            "see zimage logs alarms"
        )


def _require(cell: Cell) -> None:
    if not cell.config.alarms.on:
        raise CellError("nobody is to be told: set alarms.to_file, then zimage up")
    bad = [found for found in alarm_checks.before_up(cell) if found.level == "fail"]
    if bad:
        raise CellError(f"{bad[0].text}; {bad[0].remedy}")
    program = cell.programs().get("alarms")
    if program is None or program.state != "RUNNING":
        raise CellError("the cell passes on no alarms now: zimage up")


def _destinations(cell: Cell) -> list[str]:
    from deploy.alarms import destinations  # only where the extra is installed

    return [each.shown for each in destinations.read(under_root(cell.config.alarms.to_file))]


def _raise(cell: Cell, mark: str) -> None:
    ends = datetime.now(UTC) + timedelta(minutes=2)
    alert: dict[str, Any] = {
        "labels": {
            "alertname": "ZimageTest",
            "severity": "info",
            "cell": cell.config.cell.name,
            TEST: mark,
        },
        "annotations": {
            "summary": f"A test of {cell.config.cell.name}: alarms arrive here",
            "description": f"zimage alarm test, {mark}. Nothing is wrong.",
        },
        "endsAt": ends.isoformat(),
    }
    url = f"{cell.config.alarms.alertmanager}/api/v2/alerts"
    try:
        httpx.post(url, json=[alert], timeout=5.0).raise_for_status()
    except httpx.HTTPError as error:
        raise CellError(
            f"Alertmanager takes no alarm at {cell.config.alarms.alertmanager} ({error}); run it "
            f"with {cell.layout.monitoring_dir}/alertmanager.yml, or set alarms.alertmanager"
        ) from None


def _reached(cell: Cell, mark: str, waiting: set[str], timeout_s: float) -> Any:
    """Each destination as soon as it was told of ``mark``."""
    end = time.monotonic() + timeout_s
    while waiting and time.monotonic() < end:
        for shown, told in alarm_checks.outcomes(cell).items():
            if shown in waiting and told["test"] == mark:
                yield shown
        time.sleep(_LOOK_S)
