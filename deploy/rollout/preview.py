"""What ``up`` would do and why, without doing any of it: ``zimage up --dry-run``."""

import configparser
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy import drains
from deploy.cell import Cell
from deploy.host import orphans, processes
from deploy.rendering.render import NGINX_DIGEST, sidecars
from deploy.rollout import converge, files, nginx_binary, nginx_digest
from deploy.supervision.supervise import STOPPED, Changes, SupervisorError

_VARIABLE = re.compile(r'(\w+)="([^"]*)"')
_SETTINGS = "ZIMAGE_SETTINGS"
_WORDS = {"CODE": "the code of the kit", "PACKAGES": "its packages"}


@dataclass(frozen=True)
class Change:
    what: str
    why: str


@dataclass(frozen=True)
class _Programs:
    """The programs of supervisord's file: how that which lies there differs from the new one."""

    before: dict[str, dict[str, str]]
    after: dict[str, dict[str, str]]

    @property
    def added(self) -> list[str]:
        return [name for name in self.after if name not in self.before]

    @property
    def removed(self) -> list[str]:
        return [name for name in self.before if name not in self.after]

    @property
    def changed(self) -> list[str]:
        both = [name for name in self.after if name in self.before]
        return [name for name in both if self.after[name] != self.before[name]]

    def why(self, name: str) -> str:
        """Names alone: values may be secrets."""
        before, after = self.before.get(name, {}), self.after.get(name, {})
        keys = [k for k in {**before, **after} if before.get(k) != after.get(k)]
        return ", ".join(_WORDS.get(key, key) for key in keys)


def changes(cell: Cell, rendered: dict[str, str]) -> list[Change]:
    """In the order in which ``up`` would take them; none where nothing differs."""
    if not processes.members(cell.layout.processes):
        return [Change(f"start supervisord, {cell.plan.programs}", "nothing runs")]
    programs = _compared(cell, rendered)
    return [
        *_of_certificate(cell),
        *_of_supervisord(cell, rendered, programs),
        *_of_nginx(cell, rendered, programs),
    ]


def _of_certificate(cell: Cell) -> Iterator[Change]:
    if not cell.config.tls.on or cell.config.tls.self_signed or cell.certificate is None:
        return
    try:
        shown = cell.layout.pair.read_bytes()
    except OSError:
        shown = b""
    if shown != cell.certificate.pem:
        yield Change("take on the certificate of [tls]", "it is another one than is shown")


def _of_supervisord(cell: Cell, rendered: dict[str, str], programs: _Programs) -> Iterator[Change]:
    every = ", ".join(cell.plan.names)
    if processes.leader(cell.layout.processes) is None:
        yield Change(f"start supervisord and replace {every} one by one", "it is gone, they run")
        return
    if converge.supervisord_differs(cell, rendered):
        why = "its own settings differ, or it does not answer"
        yield Change(f"replace supervisord, then {every} one by one", why)
        return
    yield from _of_programs(cell, programs, rendered["guard.json"])


def _compared(cell: Cell, rendered: dict[str, str]) -> _Programs:
    def there(path: str) -> str:
        try:
            return Path(path).read_text(encoding="utf-8")
        except OSError:
            return "{}"

    def new(path: str) -> str:
        name = Path(path).relative_to(cell.layout.render_dir).as_posix()
        return rendered.get(name, "{}")

    before = _programs(there(str(cell.layout.supervisord_conf)), there)
    return _Programs(before, _programs(rendered["supervisord.conf"], new))


def _of_programs(cell: Cell, programs: _Programs, guard_json: str) -> Iterator[Change]:
    behind = _behind(cell)
    left = orphans.find(cell.layout).workers
    if "guard" in {*programs.changed, *behind.changed}:
        yield Change("restart the guard", programs.why("guard") or _BEHIND)
    elif converge.guard_differs(cell, guard_json):
        yield Change("restart the guard", "its settings differ")
    for name in sidecars(cell.config):
        if name in {*programs.changed, *behind.changed}:
            yield Change(f"restart {name}", programs.why(name) or _BEHIND)
    for name in {**dict.fromkeys(programs.added), **dict.fromkeys(behind.added)}:
        yield Change(f"add {name}", "cluster.toml has it, the cell has not")
    for name in _stopped(cell, {*programs.added, *programs.removed}):
        yield Change(f"start {name}", "it is stopped")
    for name in {**dict.fromkeys(programs.removed), **dict.fromkeys(behind.removed)}:
        yield Change(f"remove {name}, once it has drawn what it has", "cluster.toml has it no more")
    by_hand = drains.by_hand(cell.layout)
    for name in cell.plan.names:
        if name in {*programs.changed, *behind.changed, *left}:
            stays = f"; it is {by_hand[name].in_words} and stays out" if name in by_hand else ""
            yield Change(f"drain and restart {name}", (programs.why(name) or _BEHIND) + stays)


_BEHIND = "it runs as before a rollout that did not end"


def _of_nginx(cell: Cell, rendered: dict[str, str], programs: _Programs) -> Iterator[Change]:
    if "nginx" in programs.changed:
        yield Change("restart nginx", programs.why("nginx"))
    elif nginx_binary.differs(cell):
        way = (
            "let nginx's new program take over"
            if nginx_binary.hands_over(cell)
            else "restart nginx"
        )
        yield Change(way, f"{cell.host.nginx_path} was changed")
    elif nginx_digest.running(cell) != rendered[NGINX_DIGEST].split()[-1].rstrip(";"):
        found = [change.name for change in files.changes(cell.layout.render_dir, rendered)]
        own = [n for n in found if n.startswith(("conf.d/", "nginx")) and n != NGINX_DIGEST]
        yield Change("reload nginx", ", ".join(own) or "it runs with other files than lie there")


def _behind(cell: Cell) -> Changes:
    """How what runs differs from the file that lies there already."""
    try:
        return cell.supervisor.reread()
    except SupervisorError:
        return Changes((), (), ())


def _stopped(cell: Cell, but: set[str]) -> list[str]:
    return [n for n, p in cell.programs().items() if p.state in STOPPED and n not in but]


def _programs(text: str, read: Callable[[str], str]) -> dict[str, dict[str, str]]:
    """What each program is started with: its command, each variable of its environment, and each
    setting in the document that a worker reads, which ``read`` gets by its path."""
    parser = configparser.ConfigParser(
        interpolation=None, inline_comment_prefixes=(";",), strict=False
    )
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(text)
    found = {}
    for section in parser.sections():
        if section.startswith("program:"):
            values = dict(parser[section])
            variables = dict(_VARIABLE.findall(values.pop("environment", "")))
            path = variables.pop(_SETTINGS, "")
            settings = json.loads(read(path)) if path else {}
            own = {key: json.dumps(value) for key, value in settings.items()}
            found[section.removeprefix("program:")] = {**values, **variables, **own}
    return found
