"""What commands print: plain lines anywhere, colours and live tables on a terminal.

Everything that is printed goes through here. What others wrote (names, prompts, errors, logs) is
data: it neither steers the terminal nor is it read as Rich's markup.
"""

import itertools
import json
import os
import re
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from deploy.cell import Cell
from deploy.finding import Finding

_NO_WIDTH = 100_000
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # all controls but tab and newline; \x9b begins sequences, too
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what turns the direction of text
    "\u2028\u2029\ud800-\udfff]"  # other ends of lines, and what no encoding can write
)


def plain(text: str) -> str:
    """``text`` with what would steer a terminal as ``\\u001b`` and the like, as JSON writes it."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class _Console(Console):
    """Rich's own colours and movements only: all text is ``plain``."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=plain(segment.text))

    def render_str(self, text: str, **options: Any) -> Text:
        """Before it is measured and split into lines."""
        return super().render_str(plain(text), **options)


def _console(*, stderr: bool = False) -> Console:
    """Tables are cut for terminals alone: a pipe has no width, unless somebody sets COLUMNS."""
    made = _Console(highlight=False, soft_wrap=True, markup=False, emoji=False, stderr=stderr)
    if not made.is_terminal and not os.environ.get("COLUMNS"):
        made.width = _NO_WIDTH
    return made


console = _console()
errors = _console(stderr=True)

_HOST_COLOURS = {"ready": "green", "full": "yellow", "unknown": "", "out": "yellow"}
_COLOURS = {
    "ready": "green",
    "busy": "green",
    "loading": "cyan",
    "draining": "yellow",
    "drained": "yellow",
    "silent": "yellow",
    "stuck": "red",
    "backoff": "red",
    "fatal": "bold red",
    "lost": "bold red",
    "removed": "dim",
    "dead": "red",
}
_LOG_LEVELS = {"debug": "dim", "info": "green", "warning": "yellow", "error": "bold red"}
_LEVELS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def say(text: str) -> None:
    console.print(text)


def as_json(value: object, indent: int | None = 2) -> None:
    """For programs; JSON's own escapes leave the later controls and turns of direction."""
    raw(json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def raw(text: str) -> None:
    """As it is, without wrapping and colours, but ``plain``."""
    sys.stdout.write(plain(text))
    sys.stdout.flush()


@contextmanager
def while_read() -> Iterator[None]:
    """Until the reader ends: `| head`."""
    try:
        yield
    except BrokenPipeError:
        # Nobody reads any more: what is flushed at the end must go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def log_line(begin: str, level: str, text: str) -> None:
    """One line of a log, whose beginning and level stand back or out on a terminal."""
    if console.is_terminal:  # Text would drop some controls: all are to be seen
        colour = _LOG_LEVELS.get(level.strip().lower(), "")
        console.print(Text.assemble((begin, "dim"), (level, colour), plain(text)))
    else:
        raw(f"{begin}{level}{text}\n")


def step(text: str) -> None:
    """One thing that a command is about to do."""
    console.print(_marked("› ", "cyan", text))


def done(text: str) -> None:
    console.print(_marked("✓ ", "green", text))


def note(text: str) -> None:
    """For the person, where standard output is for a program."""
    errors.print(text)


def warn(text: str) -> None:
    errors.print(_marked("! ", "yellow", text))


def fail(text: str) -> None:
    errors.print(_marked("✗ ", "bold red", text))


def _marked(mark: str, colour: str, text: str) -> Text:
    """``mark`` in ``colour``, and nothing else: all of a line in red is hard to read."""
    return Text.assemble((mark, colour), text)


def findings(found: Iterable[Finding]) -> None:
    """Level, subject, what was found; the remedy below it. What holds for several subjects in a
    row, such as workers on the same kind of card, is told once. On a terminal, long texts go on
    below their own beginning; elsewhere each is one line."""
    for f in _folded(found):
        _hang(_marked(f"{f.level:<6}", _LEVELS[f.level], f"{f.subject}: {f.text}"), 6)
        if f.remedy:
            _hang(Text(f"      → {f.remedy}", "dim" if f.level == "ok" else ""), 8)


def _folded(found: Iterable[Finding]) -> Iterator[Finding]:
    for _, alike in itertools.groupby(found, key=lambda f: (f.level, f.text, f.remedy)):
        first, *others = alike
        subjects = dict.fromkeys(f.subject for f in (first, *others))
        yield replace(first, subject=", ".join(subjects))


def _hang(text: Text, indent: int) -> None:
    if not console.is_terminal or console.width <= indent * 2:
        console.print(text)
        return
    text = Text(plain(text.plain), spans=text.spans, style=text.style)  # before it is measured
    head, rest = text.divide([indent])
    for line in rest.wrap(console, console.width - indent):
        line.rstrip()
        console.print(Text.assemble(head, line))
        head = Text(" " * indent)


@contextmanager
def live(cell: Cell) -> Iterator["Progress"]:
    """A table of the workers that is drawn again and again, or a line a change without a tty."""
    if not console.is_terminal:
        yield Progress(cell, None)
        return
    with Live(console=console, refresh_per_second=8, transient=True) as display:
        yield Progress(cell, display)


class Progress:
    """Shows the workers while somebody waits for them."""

    def __init__(self, cell: Cell, display: Live | None) -> None:
        self._cell, self._display = cell, display
        self._said: dict[str, str] = {}
        self._since = time.monotonic()

    def show(self, title: str, workers: dict[str, dict[str, Any]], *, idle: bool) -> None:
        """``idle``: there is nothing to wait for."""
        waited_s = time.monotonic() - self._since
        if idle and not self._said:
            return  # nobody had to wait
        if self._display:
            self._said = dict.fromkeys(workers, "")
            rows = worker_table(list(workers.values()))
            head = Text(f"› {title}  {waited_s:.0f} s", "cyan")
            self._display.update(Group(head, Padding(rows, (0, 0, 0, 2))))
            return
        if not self._said:
            say(f"  {title}")
        for name, worker in workers.items():
            if self._said.get(name) != worker["state"]:
                self._said[name] = worker["state"]
                say(f"  {waited_s:5.1f} s  {name}: {worker['state']}")


@contextmanager
def transfer(what: str) -> Iterator["Transfer"]:
    """How much of a download has come: a bar on a terminal, elsewhere a line now and then."""
    if not console.is_terminal:
        yield Transfer(what, None)
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=console, transient=True) as display:
        yield Transfer(what, display)


class Transfer:
    """``total``: bytes that are to come; 0: not known yet."""

    _EVERY_S = 30.0

    def __init__(self, what: str, display: RichProgress | None) -> None:
        self.total = 0
        self._display = display
        self._task = display.add_task(plain(what), total=None) if display else None
        self._said_at = time.monotonic()

    def show(self, come: int) -> None:
        """``come``: bytes so far."""
        come = max(0, min(come, self.total))
        if self._display and self._task is not None:
            self._display.update(self._task, completed=come, total=self.total or None)
        elif self.total and time.monotonic() - self._said_at >= self._EVERY_S:
            self._said_at = time.monotonic()
            say(f"  {come / 1e9:.1f} of {self.total / 1e9:.1f} GB")


def table(*heads: str, right: Collection[str] = (), fold: Collection[str] = ()) -> Table:
    """A table as all commands show theirs, to be filled with ``add_row``. ``right``: which columns
    hold numbers; ``fold``: which are folded where the terminal is narrow."""
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for head in heads:
        side: Literal["left", "right"] = "right" if head in right else "left"
        if head in fold:
            shown.add_column(head, justify=side, overflow="fold", min_width=16)
        else:
            shown.add_column(head, justify=side, no_wrap=True)
    return shown


def below(part: RenderableType) -> Padding:
    """After an empty line, and a little to the right."""
    return Padding(part, (1, 0, 0, 2), expand=False)


def worker_table(workers: list[dict[str, Any]]) -> Table:
    numbers = ("for", "queue", "wait", "memory", "restarts")
    several = [*(["model"] if any(worker.get("model") for worker in workers) else [])]
    heads = ("worker", *several, "state", "for", "phase", *numbers[1:], "device")
    shown = table(*heads, right=numbers)
    for worker in workers:
        name, *cells = _cells(worker)
        shown.add_row(name, *(plain(worker.get(key) or "–") for key in several), *cells)
    return shown


def state_text(name: str) -> Text:
    """In its colour."""
    return Text(name, _COLOURS.get(name, ""))


def host_table(hosts: list[dict[str, Any]]) -> Table:
    """As a front's guard sees them."""
    shown = table(
        "host", "state", "for", "workers", "wait", "why", right=("for", "workers", "wait")
    )
    for host in hosts:
        state, wait_s = host["state"], host["wait_s"]
        shown.add_row(
            Text(host["name"], "bold"),
            Text(state, _HOST_COLOURS.get(state, "red")),
            span(time.time() - host["since"]),
            f"{host['ready']} of {host['workers']}",
            f"{wait_s:.1f} s" if wait_s else "–",
            host["why"] if host["why"] != state else "–",
        )
    return shown


def _cells(worker: dict[str, Any]) -> list[RenderableType]:
    queue = worker.get("queued", 0) + worker.get("running", 0)
    wait_s = worker.get("predicted_wait_s")
    resident = worker.get("resident_bytes")
    return [
        Text(worker["name"], "bold"),
        state_text(worker["state"]),
        span(time.time() - worker["since"]) if worker.get("since") else "",
        worker.get("phase") or "–",
        str(queue) if queue else "–",
        f"{wait_s:.1f} s" if wait_s else "–",
        f"{resident / 2**30:.1f} GiB" if resident else "–",
        str(worker.get("restarts", 0) or "–"),
        short_device(worker.get("device") or ""),
    ]


def status(state: dict[str, Any]) -> RenderableType:
    """Alarms first, then one line on the cell, then the workers."""
    parts: list[RenderableType] = []
    for alarm in state.get("alarms", ()):
        where = f"{alarm['worker']}: " if alarm.get("worker") else ""
        parts.append(Text(f"ALARM  {where}{alarm['text']}", "bold red"))
    parts.append(_headline(state))
    if rollout := (state.get("rollout") or {}).get("text"):
        parts.append(Text(f"rollout  {rollout}", "yellow"))
    if state.get("hosts"):
        parts.append(below(host_table(state["hosts"])))
    if state["workers"]:
        parts.append(below(worker_table(state["workers"])))
    # Not a column: they are long, and most of the time there is none.
    faults = [_last_fault(w) for w in state["workers"] if w.get("last_fault")]
    if faults:
        parts.append(below(Group(Text("last faults", "dim"), *faults)))
    return Group(*parts)


def _last_fault(worker: dict[str, Any]) -> Text:
    fault = worker["last_fault"]
    line = f"{worker['name']}  {span(time.time() - fault['at'])} ago: {fault['what']}"
    return Text(line, overflow="fold")


def _headline(state: dict[str, Any]) -> Text:
    cell, pool = state["cell"], state["pool"]
    colour = "green" if pool["open"] == pool["of"] else "yellow" if pool["open"] else "bold red"
    line = Text.assemble(
        (cell["name"], "bold"),
        f"  {cell['url']}  ",
        (f"pool {pool['open']} of {pool['of']}", colour),
        f"  up {span(cell['uptime_s'])}" if cell["uptime_s"] is not None else "",
        (f"  zimage {cell['version']}", "dim"),
    )
    if not cell["supervisor"]:
        line.append("  supervisord does not answer: zimage up takes over", "bold red")
    if state["stale"]:
        line.append(f"  STALE: the guard wrote this {span(state['age_s'])} ago", "bold red")
    return line


def short_device(device: str) -> str:
    return device if len(device) <= 12 else device[:12] + "…"


def span(seconds: float) -> str:
    """A duration in the two units that matter, for example ``3 h 12 m``."""
    whole = max(0, int(seconds))
    for size, unit, small, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small} {small_unit}"
    return f"{whole // 60} m {whole % 60} s" if whole >= 60 else f"{whole} s"


def brief_span(seconds: float) -> str:
    """A duration in the one unit that matters, for example ``3 h``."""
    return " ".join(span(seconds).split()[:2])
