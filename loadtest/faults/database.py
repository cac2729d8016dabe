"""Faults of the database, of which drawing must see nothing. Contexts, as in ``workers``."""

import contextlib
import resource
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from loadtest.faults.cell import Cell
from loadtest.faults.workers import limited


@contextlib.contextmanager
def database_locked(cell: Cell, _worker: str) -> Iterator[None]:
    """Somebody begins to write and does not end."""
    holder = sqlite3.connect(_file(cell), timeout=10, isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        yield
        holder.execute("ROLLBACK")
    finally:
        holder.close()


def _file(cell: Cell) -> Path:
    """``LookupError`` where the database is a server's: nothing here can lock or rename it."""
    if cell.layout.postgres_url:
        raise LookupError(f"{cell.layout.database_name} is no file: stop the server instead")
    return cell.layout.database


@contextlib.contextmanager
def database_missing(cell: Cell, _worker: str) -> Iterator[None]:
    """The file has another name for a while."""
    path = _file(cell)
    away = path.with_suffix(".away")
    path.rename(away)
    try:
        yield
    finally:
        away.rename(path)


@contextlib.contextmanager
def database_full(cell: Cell, _worker: str) -> Iterator[None]:
    """No worker may make any file longer: neither database nor journal nor picture."""
    with contextlib.ExitStack() as undo:
        for worker in cell.workers():
            undo.enter_context(limited(cell.pid(worker), resource.RLIMIT_FSIZE, 1))
        yield
