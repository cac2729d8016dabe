"""``zimage database``: where keys, people, usage, jobs and the gallery's rows lie."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from deploy import output, store
from deploy.cell import Cell, CellError
from deploy.cli.options import Config, open_cell
from deploy.config.messages import lines_of
from deploy.config.schema import Database
from deploy.host import processes
from deploy.rollout import checks, operation

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from worker.storage.database_move import DatabaseMove, MovedTable

app = typer.Typer(
    name="database", help="Where keys, usage and the gallery's rows lie.", no_args_is_help=True
)


@app.callback()
def database() -> None:
    """Where keys, people, usage, jobs and the gallery's rows lie."""


@app.command()
def move(
    url: Annotated[
        str, typer.Argument(help="Of PostgreSQL, as database.url has it. [default: that one]")
    ] = "",
    config: Config = None,
    password_file: Annotated[
        Path | None, typer.Option("--password-file", help="With the password of the URL's role.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be moved, and change nothing.")
    ] = False,
) -> None:
    """Move the SQLite file's rows into PostgreSQL. The cell must be down; again, it goes on."""
    cell = open_cell(config)
    source, target = _file_of(cell), _server_of(cell, url, password_file)
    if dry_run:
        _show_plan(source, target)
        return
    _require_down(cell)
    with operation.begin(cell, "move", "database move"):
        _move(source, target)
    _say_what_is_next(cell, target)


def _file_of(cell: Cell) -> Cell:
    """The cell with its database in a file; ``CellError`` where there is none."""
    if cell.config.database.is_postgres:
        cell = _with(cell, Database())
    if not cell.layout.database.exists():
        raise CellError(f"there is no {cell.layout.database} that could be moved")
    return cell


def _server_of(cell: Cell, url: str, password_file: Path | None) -> Cell:
    """The cell with its database on the server; ``CellError`` where it cannot be used."""
    try:
        file = str(password_file.absolute()) if password_file else ""
        told = Database(url=url, password_file=file) if url else cell.config.database
    except ValidationError as error:
        wrong = [line.removeprefix("cluster.toml.") for line in lines_of(error.errors())]
        raise CellError("; ".join(wrong)) from None
    if not told.is_postgres:
        raise CellError(
            "name the database: zimage database move postgresql://zimage@HOST/zimage "
            "--password-file FILE"
        )
    target = _with(cell, told)
    for found in checks.database(target):
        if found.level == "fail":
            raise CellError(f"{found.text}; {found.remedy}")
    return target


def _with(cell: Cell, database: Database) -> Cell:
    return Cell(cell.config.model_copy(update={"database": database}), cell.config_path)


def _require_down(cell: Cell) -> None:
    # What it would write meanwhile would be in the file alone.
    if processes.members(cell.layout.processes):
        raise CellError("the cell runs: end it first with zimage down")


def _show_plan(source: Cell, target: Cell) -> None:
    with _opened(source, target) as rows:
        tables = rows.survey()
    for table in tables:
        _show(table)
    left = sum(table.content.rows for table in tables if table.state == "to be moved")
    output.done(f"{left:,} rows would be moved; nothing was changed")


def _move(source: Cell, target: Cell) -> None:
    output.step(
        f"move {source.layout.database_name} into {target.layout.database_name}, "
        "each table compared with its copy"
    )
    moved: list[MovedTable] = []
    store.migrate(source)
    store.migrate(target)
    _count_today(source)
    with _opened(source, target) as rows:

        def told(table: "MovedTable") -> None:
            moved.append(table)
            _show(table)

        rows.move(told)
    total = sum(table.content.rows for table in moved)
    output.done(f"{total:,} rows in {len(moved)} tables; every copy has the digest of its table")


def _count_today(source: Cell) -> None:
    """What keys have drawn of their day's pictures goes along, too."""
    from worker.coordination.quota import Quotas
    from worker.storage import database_move

    quotas = Quotas(source.layout.run_dir, source.layout.var_dir)

    def work(connection: "Connection") -> None:
        found = store.keys.snapshot(connection).keys
        counted = {key.id: asyncio.run(quotas.today(key)) for key in found}
        drawn = {id: images for id, images in counted.items() if images}
        database_move.count_today(connection, drawn, time.time())

    store.run(source, work)


@contextmanager
def _opened(source: Cell, target: Cell) -> Iterator["DatabaseMove"]:
    from sqlalchemy.exc import SQLAlchemyError

    from worker.storage import database_move

    try:
        with database_move.opened(source.layout.database_url, target.layout.database_url) as rows:
            yield rows
    except database_move.NotMovable as error:
        raise CellError(f"{error}. The file is as before") from None
    except SQLAlchemyError as error:
        why = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise CellError(
            f"{why}; what is moved stays moved, and the same command again goes on"
        ) from None


def _show(table: "MovedTable") -> None:
    content = table.content
    output.say(f"  {table.name:<18}{content.rows:>12,}  {content.digest[:12]}  {table.state}")


def _say_what_is_next(cell: Cell, target: Cell) -> None:
    told = target.config.database
    if told == cell.config.database:
        output.say("  next     zimage up")
    else:
        output.say(f"  next     write into {cell.config_path}, then zimage up:\n")
        output.say(f'[database]\nurl = "{told.url}"')
        if told.password_file:
            output.say(f'password_file = "{told.password_file}"')
        output.say("")
    output.say(f"  before   {_file_of(cell).layout.database} stays as it is: take it into a backup")
