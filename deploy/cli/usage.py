"""``zimage usage``: who used how much."""

import csv
import io
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.table import Table

from deploy import output, store
from deploy.cli.options import AsJson, Config, open_cell


class By(StrEnum):
    KEY = "key"
    DAY = "day"
    MODEL = "model"


_HEADS = {"megapixel_steps": "Mpx·steps", "gpu_seconds": "GPU s", "queue_seconds": "queued s"}


def usage(
    by: Annotated[By, typer.Option(help="What to sum up by.")] = By.KEY,
    since: Annotated[str, typer.Option(metavar="DAY", help="As 2027-01-31, UTC.")] = "",
    until: Annotated[str, typer.Option(metavar="DAY", help="The last day, included.")] = "",
    as_csv: Annotated[bool, typer.Option("--csv", help="For spreadsheets.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show who used how much. Requests, pictures, GPU seconds, refusals."""
    for name, day in (("--since", since), ("--until", until)):
        if day and not store.usage.is_day(day):
            raise typer.BadParameter(f"{name} {day}: write it as 2027-01-31")
    if as_csv and as_json:
        raise typer.BadParameter("--csv or --json, not both")
    cell = open_cell(config)
    rows = store.run(cell, lambda c: store.usage.report(c, by.value, since, until))
    if by is By.KEY:
        names = {key.id: key.name for key in store.run(cell, store.keys.snapshot).keys}
        rows = [{**r, "key": names.get(r["key"], r["key"]), "key_id": r["key"]} for r in rows]
    if as_json:
        output.as_json(rows)
    elif as_csv:
        _write_csv(rows, by)
    elif rows:
        output.console.print(_table(rows, by))
    else:
        output.say("nothing was used")


def _write_csv(rows: list[dict[str, Any]], by: By) -> None:
    names = [by.value, *store.usage.COLUMNS, *(["key_id"] if by is By.KEY else [])]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, by.value: _plain(row[by.value])} for row in rows)
    output.raw(text.getvalue())


def _plain(text: str) -> str:
    """What a spreadsheet would take for a formula, quoted as text."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def _table(rows: list[dict[str, Any]], by: By) -> Table:
    columns = store.usage.COLUMNS
    heads = [_HEADS.get(name, name) for name in columns]
    table = output.table(by.value, *heads, right=heads, fold=[by.value])
    for row in rows:
        table.add_row(row[by.value] or "–", *(_shown(name, row[name]) for name in columns))
    if len(rows) > 1:
        total = (_shown(name, sum(row[name] for row in rows)) for name in columns)
        table.add_row("total", *total, style="bold")
    return table


def _shown(name: str, value: float) -> str:
    return f"{value:,.1f}" if name in store.usage.AMOUNTS else f"{int(value):,}"
