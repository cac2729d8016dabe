"""nginx's program: whether another one lies there than runs."""

from pathlib import Path

from deploy.cell import Cell
from deploy.supervision import nginx_program


def differs(cell: Cell) -> bool:
    """Whether the program has changed since the nginx that runs was started with it."""
    try:
        ran = nginx_program.noted(cell.layout.processes).read_text(encoding="utf-8")
    except OSError:
        return False  # started by a version that noted none
    return ran != nginx_program.digest(Path(cell.host.nginx_path))
