"""The cell's database as commands see it."""

from deploy.cell import Cell, CellError


def migrate(cell: Cell) -> None:
    """Bring the database to this version of the kit, all of it or nothing; ``CellError``."""
    # Here, because every other command would pay for the import as well.
    from worker.storage import migrations

    try:
        migrations.migrate(cell.layout.database_url)
    except migrations.ERRORS as error:
        raise CellError(
            f"the database {cell.layout.database} cannot be migrated: {_first_line(error)}\n"
            "Make room, or end what holds it; where it is damaged, restore a backup."
        ) from error


def _first_line(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]
