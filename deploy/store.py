"""The cell's database, and the secret of its keys, as commands see them.

SQLAlchemy takes longer to import than most verbs take to run, so it is imported by those that use
the database: ``store.keys``, ``store.usage`` and so on are modules of ``worker.storage``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from deploy.cell import Cell, CellError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from worker.storage import gallery as gallery
    from worker.storage import job_changes as job_changes
    from worker.storage import job_turns as job_turns
    from worker.storage import keys as keys
    from worker.storage import postgres as postgres
    from worker.storage import usage as usage
else:

    def __getattr__(name: str) -> Any:
        if name in ("gallery", "job_changes", "job_turns", "keys", "postgres", "usage"):
            return import_module(f"worker.storage.{name}")
        raise AttributeError(name)


T = TypeVar("T")

_TIMEOUT_S = 10.0


class Taken(Exception):
    """There is such a row already."""


def migrate(cell: Cell) -> None:
    """Bring the database to this version of the kit, all of it or nothing; ``CellError``."""
    from worker.storage import migrations

    try:
        migrations.migrate(cell.layout.database_url)
    except migrations.OldHosts as error:
        raise CellError(f"the database {cell.layout.database_name} stays: {error}") from error
    except migrations.ERRORS as error:
        raise CellError(
            f"the database {cell.layout.database_name} cannot be migrated: {_first_line(error)}\n"
            + _remedy(cell)
        ) from error


def run(cell: Cell, work: "Callable[[Connection], T]") -> T:
    """The result of ``work`` in one transaction; ``Taken``, or ``CellError``: the database is
    away."""
    from sqlalchemy.exc import IntegrityError

    try:
        with connected(cell) as connection, connection.begin():
            return work(connection)
    except IntegrityError:
        raise Taken from None


@contextmanager
def connected(cell: Cell) -> "Iterator[Connection]":
    """A connection, without a transaction; ``IntegrityError``, or ``CellError``: the database is
    away."""
    from sqlalchemy.exc import IntegrityError, SQLAlchemyError

    from worker.storage.database import create_engine
    from worker.storage.keys import SecretLost

    engine = create_engine(cell.layout.database_url, _TIMEOUT_S)
    try:
        with engine.connect() as connection:
            yield connection
    except IntegrityError:
        raise
    except SecretLost:
        raise CellError(
            f"{cell.layout.key_secret} is lost or another one, so no stored key fits any more; "
            "restore it from a backup, or delete all keys and make new ones"
        ) from None
    except SQLAlchemyError as error:
        layout, why = cell.layout, _first_line(error)
        there = layout.postgres_url or layout.database.exists()
        remedy = "try again" if there else "zimage up makes it"
        raise CellError(
            f"the database {layout.database_name} cannot be used: {why}; {remedy}"
        ) from None
    finally:
        engine.dispose()


def _remedy(cell: Cell) -> str:
    if cell.layout.postgres_url:
        return "Make it reachable and let the role of database.url create tables in it."
    return "Make room, or end what holds it; where it is damaged, restore a backup."


def secret_for(cell: Cell) -> bytes:
    """The secret of the cell's keys, made where there is no key yet; ``CellError``: it is lost."""
    from worker.storage import keys
    from worker.storage.secret import shared_secret

    path = cell.layout.key_secret
    run(cell, lambda c: keys.require_secret(c, path.read_bytes() if path.exists() else None))
    return shared_secret(path)


def operator_headers(cell: Cell) -> dict[str, str]:
    """What lets a command of the cell's own user in, where keys are asked for."""
    if cell.config.listen.auth != "keys":
        return {}
    from worker.accounts.tokens import operator_token
    from worker.storage.secret import cluster_secrets

    layout, in_cluster = cell.layout, cell.config.cluster.on
    # That of the keys is the same for ever, and known to hosts that were removed.
    secret = (
        cluster_secrets(layout.cluster_secret)[0] if in_cluster else layout.key_secret.read_bytes()
    )
    return {"Authorization": f"Bearer {operator_token(secret)}"}


def _first_line(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]
