"""The adapters of a cell, as far as the heads of their files show."""

from collections.abc import Iterator
from pathlib import Path

from deploy.cell import Cell
from deploy.finding import Finding
from deploy.layout import loras_of
from worker.models.loras.folder import LoraFolder

_MAX_PROBLEMS = 5


def folder_of(cell: Cell) -> LoraFolder:
    """Where they lie."""
    told = loras_of(cell.config).folder
    return LoraFolder(Path(told) if told else cell.layout.var_dir / "loras")


def doctor(cell: Cell) -> Iterator[Finding]:
    """Files that no request can use though they are there. A cell without any draws as well."""
    folder = folder_of(cell)
    problems = folder.problems()
    for file, why in list(problems.items())[:_MAX_PROBLEMS]:
        yield Finding("warn", "loras", f"{file}: {why.what}", why.remedy)
    if not problems and (found := folder.all()):
        yield Finding("ok", "loras", f"{len(found)} in {folder.path}")
