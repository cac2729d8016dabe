"""Which configuration nginx runs with: it answers that itself, on the address of operators.

A reload is only asked for by a signal, and a master process that refuses the new files goes on with
the old ones: one that was started before nginx was upgraded, for example. So what counts is what
new connections are answered.
"""

import httpx

from deploy.cell import Cell, CellError
from deploy.host import processes
from deploy.rendering.render import NGINX_DIGEST

_TIMEOUT_S = 15.0
_LINES = 5


def rendered(cell: Cell) -> str:
    """The digest of the files that lie there."""
    return (
        (cell.layout.render_dir / NGINX_DIGEST).read_text(encoding="utf-8").split()[-1].rstrip(";")
    )


def running(cell: Cell) -> str | None:
    """The digest of what nginx runs with; None where it does not answer."""
    try:
        # Not through a proxy of the environment: this is our own machine.
        answer = httpx.get(f"{cell.ops_url}nginx/configuration", trust_env=False, timeout=2.0)
    except httpx.HTTPError:
        return None
    return answer.text if answer.status_code == 200 else None


def require(cell: Cell) -> None:
    """Wait until nginx runs with what lies there; ``CellError`` with what it says against it."""
    wanted = rendered(cell)
    if processes.wait_for(lambda: running(cell) == wanted, _TIMEOUT_S, every_s=0.1):
        return
    if running(cell) is None:
        raise CellError(
            f"nginx does not answer at {cell.ops_url}; it says:\n{_said(cell, 'nginx')}"
        )
    raise CellError(
        "nginx goes on with the configuration of before, it refused the new one:\n"
        f"{_said(cell, 'nginx-error')}\n"
        "Where nginx was upgraded meanwhile, its old process must end first: zimage down, zimage up"
    )


def _said(cell: Cell, log: str) -> str:
    lines = cell.log_tail(log, lines=200).splitlines()
    # A closed gate costs an [error] for each try: those would hide what matters.
    grave = [line for line in lines if "[emerg]" in line or "[alert]" in line] or lines
    return "\n".join(f"  | {line}" for line in grave[-_LINES:])
