"""Which configuration nginx runs with: it answers that itself, on the address of operators.

A reload is only asked for by a signal, and a master process that refuses the new files goes on with
the old ones: one that was started before nginx was upgraded, for example. So what counts is what
new connections are answered.
"""

import re
from pathlib import Path

import httpx

from deploy.cell import Cell, CellError
from deploy.host import processes
from deploy.rendering.render import NGINX_DIGEST

_TIMEOUT_S = 60.0
"""A refusal is known at once; a busy machine may need this long to take a configuration."""
_LINES = 5
_IN_USE = re.compile(rb" (bind|listen)\(\) to ")


def rendered(cell: Cell) -> str:
    """The digest of the files that lie there."""
    return (
        (cell.layout.render_dir / NGINX_DIGEST).read_text(encoding="utf-8").split()[-1].rstrip(";")
    )


def running(cell: Cell) -> str | None:
    """The digest of what nginx runs with; None where it does not answer."""
    try:
        # Not through a proxy of the environment: this is our own machine. Authorities, of which
        # httpx would read a hundred each time, have no say where there is no TLS.
        url = f"{cell.ops_url}nginx/configuration"
        answer = httpx.get(url, trust_env=False, verify=False, timeout=2.0)
    except httpx.HTTPError:
        return None
    return answer.text if answer.status_code == 200 else None


def errors_bytes(cell: Cell) -> int:
    """How long nginx's log of errors is by now."""
    try:
        return cell.layout.nginx_error_log.stat().st_size
    except OSError:
        return 0


def require(cell: Cell, *, reloaded_at: int | None = None) -> None:
    """Wait until nginx runs with what lies there; ``CellError`` with what it says against it.

    ``reloaded_at``: how long its log of errors was just before it was told to reload. Where it says
    there that it refuses, nobody waits any longer.
    """
    wanted = rendered(cell)

    def refused() -> bool:
        return reloaded_at is not None and _refuses(cell.layout.nginx_error_log, reloaded_at)

    processes.wait_for(lambda: running(cell) == wanted or refused(), _TIMEOUT_S, every_s=0.1)
    found = running(cell)
    if found == wanted:
        return
    if found is None and not refused():
        raise CellError(
            f"nginx does not answer at {cell.ops_url}; it says:\n{_said(cell, 'nginx')}"
        )
    why = (
        "it refused the new one" if refused() else f"{_TIMEOUT_S:g} s after it was to take another"
    )
    raise CellError(
        f"nginx goes on with the configuration of before, {why}:\n{_said(cell, 'nginx-error')}\n"
        "Where nginx was upgraded meanwhile, its old process must end first: zimage down, zimage up"
    )


def _refuses(log: Path, since: int) -> bool:
    try:
        with log.open("rb") as file:
            file.seek(since if since <= file.seek(0, 2) else 0)  # 0: it was begun anew
            lines = file.readlines()
    except OSError:
        return False
    # An address in use is tried again for seconds.
    return any(b"[emerg]" in line and not _IN_USE.search(line) for line in lines)


def _said(cell: Cell, log: str) -> str:
    lines = cell.log_tail(log, lines=200).splitlines()
    # A closed gate costs an [error] for each try: those would hide what matters.
    grave = [line for line in lines if "[emerg]" in line or "[alert]" in line] or lines
    return "\n".join(f"  | {line}" for line in grave[-_LINES:])
