"""``zimage logs``: what the programs of a cell wrote, merged by time."""

import re
import time
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from deploy import output
from deploy.cell import Cell, CellError
from deploy.cli.log_lines import Follower, Level, Line, Log, merged, shown
from deploy.cli.options import Config, open_cell
from deploy.rollout.interrupts import Interrupted

_DEFAULT_LINES = 40
_POLL_S = 0.25
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def logs(
    programs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Workers, guard, nginx, nginx-error, access or supervisord "
            "[default: all but access]."
        ),
    ] = None,
    config: Config = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they grow.")] = False,
    lines: Annotated[
        int | None,
        typer.Option(
            "--lines", "-n", min=1, help="How many of the end [default: 40, or all since WHEN]."
        ),
    ] = None,
    since: Annotated[
        str, typer.Option(metavar="WHEN", help="As 90s, 10m, 2h, 3d, 18:00 or 2027-01-31T18:00.")
    ] = "",
    level: Annotated[Level, typer.Option(help="This and what is worse.")] = Level.DEBUG,
    as_json: Annotated[
        bool, typer.Option("--json", help="As they stand in the files, a JSON object a line.")
    ] = False,
) -> None:
    """Show what the programs of the cell wrote, by time. Times are local."""
    start = _moment(since) if since else None
    if lines is None and start is None:
        lines = _DEFAULT_LINES
    found = _chosen(open_cell(config), programs or [])
    width = max(len(log.program) for log in found)

    def show(line: Line) -> None:
        if as_json:
            output.raw(line.as_json() + "\n")
            return
        output.log_line(*shown(line, width))
        for more in line.more():
            output.raw(f"    {more}\n")

    with ExitStack() as followed, output.while_read(), suppress(Interrupted, KeyboardInterrupt):
        followers = [Follower(log) for log in found] if follow else []  # from where history ends
        followed.callback(_close, followers)
        ends = {f.log: f.position for f in followers} or {log: _size(log.path) for log in found}
        for line in merged(ends, lines, start, level):
            show(line)
        while followers:
            for line in _news(followers):
                if line.level.rank >= level.rank:
                    show(line)
            time.sleep(_POLL_S)
            if not programs:
                _join(followers)


def _close(followers: list[Follower]) -> None:
    for follower in followers:
        follower.close()


def _news(followers: list[Follower]) -> list[Line]:
    found = [line for follower in followers for line in follower.news()]
    return sorted(found, key=lambda line: line.at)


def _join(followers: list[Follower]) -> None:
    """Follow programs that begin later, too, such as a worker that was added."""
    known = {follower.log for follower in followers}
    present = _present(followers[0].log.path.parent)
    new = [log for log in present if log.program != "access" and log not in known]
    followers += [Follower(log, whole=True) for log in new]


def _present(folder: Path) -> list[Log]:
    return [Log(path.stem, path) for path in sorted(folder.glob("*.log"))]


def _chosen(cell: Cell, programs: list[str]) -> list[Log]:
    present = {log.program: log for log in _present(cell.layout.logs_dir)}
    if not present:
        raise CellError(f"no logs in {cell.layout.logs_dir} yet: start the cell with: zimage up")
    if not programs:
        return [log for name, log in present.items() if name != "access"]
    for name in programs:
        if name not in present:
            raise typer.BadParameter(f"no log {name}; there are: {', '.join(present)}")
    return [present[name] for name in dict.fromkeys(programs)]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _moment(text: str) -> float:
    """Seconds since the epoch; what names no zone is local time."""
    if ago := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
        return time.time() - float(ago[1]) * _UNITS_S[ago[2]]
    if re.fullmatch(r"\d\d?:\d\d(:\d\d)?", text):
        text = f"{datetime.now():%Y-%m-%d}T{text:0>5}"
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise typer.BadParameter(f"--since {text}: write 10m, 2h, 18:00 or 2027-01-31") from None
