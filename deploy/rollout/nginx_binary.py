"""nginx's program: whether another one lies there than runs, and going over to it."""

from pathlib import Path

from deploy.cell import Cell, CellError
from deploy.host import processes
from deploy.supervision import nginx_program

_TIMEOUT_S = 15.0


def differs(cell: Cell) -> bool:
    """Whether the program has changed since the nginx that runs was started with it."""
    try:
        ran = nginx_program.noted(cell.layout.processes).read_text(encoding="utf-8")
    except OSError:
        return False  # started by a version that noted none
    return ran != nginx_program.digest(Path(cell.host.nginx_path))


def hands_over(cell: Cell) -> bool:
    """Whether the nginx that runs can hand its sockets over. One that an older version of the kit
    has started cannot: supervisord itself is its parent."""
    nginx = processes.read(_attendant(cell))
    return nginx is not None and not nginx.command.startswith("nginx:")


def _attendant(cell: Cell) -> int:
    return cell.supervisor.states()["nginx"].pid


def hand_over(cell: Cell) -> None:
    """Let the program that lies there take over; ``CellError``: the old one goes on."""
    for _ in range(2):
        attendant = _attendant(cell)
        cell.supervisor.signal("nginx", "USR2")
        if processes.wait_for(lambda: not differs(cell), _TIMEOUT_S):
            return
        if _attendant(cell) == attendant:
            break  # one of an older version ends by the signal, and a new one follows
    said = "\n".join(f"  | {line}" for line in cell.log_tail("nginx", lines=5).splitlines())
    raise CellError(
        f"nginx goes on with its program of before, {cell.host.nginx_path} did not take over; it "
        f"says:\n{said}\nWhere that will not do: zimage down, zimage up"
    )
