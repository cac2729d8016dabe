"""Faults of the database, of which drawing must see nothing. Contexts, as in ``workers``."""

import contextlib
import resource
import sqlite3
from collections.abc import Iterator

from loadtest.faults.cell import Cell
from loadtest.faults.workers import limited


@contextlib.contextmanager
def database_locked(cell: Cell, _worker: str) -> Iterator[None]:
    """Somebody begins to write and does not end."""
    holder = sqlite3.connect(cell.layout.database, timeout=10, isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        yield
        holder.execute("ROLLBACK")
    finally:
        holder.close()


@contextlib.contextmanager
def database_missing(cell: Cell, _worker: str) -> Iterator[None]:
    """The file has another name for a while."""
    path = cell.layout.database
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
