"""nginx's program: whether another one lies there than runs, and putting it in its place.

The old master hands its listening sockets to the new one (USR2) and finishes what is open (QUIT):
nobody is refused meanwhile. supervisord sees its child end, and the next one adopts the new master.
"""

import signal
from pathlib import Path

from deploy.cell import Cell, CellError
from deploy.host import processes
from deploy.supervision import nginx_program

_TIMEOUT_S = 10.0


def differs(cell: Cell) -> bool:
    """Whether the program has changed since the nginx that runs was started with it."""
    try:
        ran = nginx_program.noted(cell.layout.processes).read_text(encoding="utf-8")
    except OSError:
        return False  # started by a version that noted none
    return ran != nginx_program.digest(Path(cell.host.nginx_path))


def replace(cell: Cell) -> None:
    """Let the new program take over; ``CellError`` where it does not, and the old one goes on."""
    layout = cell.layout
    old = nginx_program.running_master(layout.processes, str(layout.nginx_conf))
    if old is None:
        return  # it ends at this moment, and is started anew

    def succeeded() -> bool:
        masters = nginx_program.masters(layout.processes, str(layout.nginx_conf))
        return any(master.pid != old.pid for master in masters)

    old.send(signal.SIGUSR2)
    if not processes.wait_for(succeeded, _TIMEOUT_S):
        raise CellError(
            f"the new {cell.host.nginx_path} does not start beside the old one, which goes on:\n"
            f"{cell.log_tail('nginx-error', lines=3)}\nzimage logs nginx says why"
        )
    nginx_program.note(layout.processes, Path(cell.host.nginx_path))
    old.send(signal.SIGQUIT)
