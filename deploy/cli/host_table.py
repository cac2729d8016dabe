"""The hosts of a cluster as people see them."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy import output
from deploy.cluster.differences import differences

SILENT_S = 10.0
_WARN_SKEW_S, _BAD_SKEW_S = 1.0, 5.0
_MANY = 99_999
_MOST_DIFFERENCES = 10

Host = Mapping[str, Any]
"""As in ``hosts.json``."""


def state_of(host: Host, now: float) -> str:
    """What it says, or that it says nothing."""
    if host["wanted"] == "removed":
        return "removed"
    if host["lost_at"] is not None:
        return "lost"
    return "silent" if now - host["at"] > SILENT_S else str(host["state"])


def takes_requests(host: Host, now: float) -> bool:
    """Whether pictures are drawn there."""
    draws = state_of(host, now) in ("ready", "busy") and host["ready"] > 0
    return bool(draws and host["wanted"] == "in")


def shown(cluster: str, hosts: Sequence[Host], now: float, width: int) -> RenderableType:
    """One line on the cluster, the hosts, and what a person should know. ``now`` and all times are
    of the database's clock; ``width``: of the terminal."""
    there = [host for host in hosts if _is_there(host, now)]
    parts: list[RenderableType] = [_headline(cluster, there, now)]
    parts.append(output.below(_table(there, now, width - 2)))
    notes = _notes(there, now)
    if notes.row_count:
        parts.append(output.below(notes))
    return Group(*parts)


def _is_there(host: Host, now: float) -> bool:
    """Removed ones are shown while they still write."""
    return bool(host["wanted"] != "removed" or now - host["at"] <= SILENT_S)


def _headline(cluster: str, hosts: Sequence[Host], now: float) -> Text:
    drawing = [host for host in hosts if host["role"] != "front" and host["wanted"] != "removed"]
    fronts = [host for host in hosts if host["role"] != "host" and host["wanted"] != "removed"]
    ready = sum(host["ready"] for host in drawing if takes_requests(host, now))
    workers = sum(host["workers"] for host in drawing)
    colour = "green" if ready == workers and ready else "yellow" if ready else "bold red"
    counts = f"{_count(len(drawing), 'host')}, {_count(len(fronts), 'front')}"
    line = Text.assemble(
        (cluster, "bold"), f"  {counts}  ", (f"workers {ready} of {workers}", colour)
    )
    versions = sorted({host["version"] for host in hosts})
    if len(versions) == 1:
        line.append(f"  zimage {versions[0]}", "dim")
    elif versions:
        line.append(f"  versions differ: {', '.join(versions)}", "yellow")
    return line


def _table(hosts: Sequence[Host], now: float, width: int) -> Table:
    """Without addresses where they do not fit: they are the same from day to day."""
    whole = _filled(hosts, now, addresses=True)
    fits = output.console.measure(whole).maximum <= width
    return whole if fits else _filled(hosts, now, addresses=False)


def _filled(hosts: Sequence[Host], now: float, *, addresses: bool) -> Table:
    numbers = ("workers", "queue", "wait", "skew", "for")
    heads = ["host", "role", "address", "state", "for", "workers", "queue", "wait"]
    heads += ["skew", "version"]
    if not addresses:
        heads.remove("address")
    table = output.table(*heads, right=numbers)
    usual = _usual_version(hosts)
    for host in hosts:
        cells = _cells(host, now, usual)
        table.add_row(*(cells[head] for head in heads))
    return table


def _cells(host: Host, now: float, usual: str) -> dict[str, RenderableType]:
    state = state_of(host, now)
    known = state not in ("lost", "silent", "removed")  # else its numbers are old
    is_front = host["role"] == "front"
    queue = host["queued"] + host["running"]
    since = {"lost": host["lost_at"], "silent": host["at"]}.get(state) or host["since"]
    return {
        "host": Text(host["id"], "bold"),
        "role": host["role"],
        "address": host["address"] or "–",
        "state": output.state_text(state),
        "for": output.brief_span(now - since),
        "workers": "–" if is_front else _workers(host, known=known),
        "queue": str(queue) if known and queue else "–",
        "wait": f"{host['wait_s']:.1f} s" if known and host["wait_s"] else "–",
        "skew": _skew(host["skew_s"]) if known else "–",
        "version": Text(host["version"], "" if host["version"] == usual else "yellow"),
    }


def _workers(host: Host, *, known: bool) -> Text:
    ready = host["ready"] if known else 0
    whole = ready == host["workers"]
    colour = "" if whole else "yellow" if ready else "red"
    return Text(f"{ready}/{host['workers']}", colour)


def _skew(skew_s: float) -> RenderableType:
    if abs(skew_s) < 0.05:
        return "–"
    colour = "bold red" if abs(skew_s) > _BAD_SKEW_S else "yellow"
    text = f"{skew_s:+.1f} s" if abs(skew_s) < _MANY else "wrong"
    return Text(text, colour if abs(skew_s) > _WARN_SKEW_S else "")


def _notes(hosts: Sequence[Host], now: float) -> Table:
    """What a person should know of each, under one another however long it is."""
    notes = Table.grid(padding=(0, 2, 0, 0))
    notes.add_column(no_wrap=True)
    notes.add_column(overflow="fold")
    models = {host["id"]: _models(host) for host in hosts if _models(host)}
    if len(set(models.values())) > 1:
        for id, names in models.items():
            notes.add_row(Text(id, "bold"), Text(f"serves {', '.join(names)}"))
    for host in hosts:
        for text in _told_of(host, now):
            notes.add_row(Text(host["id"], "bold"), Text(text, "yellow"))
    for each in differences(hosts)[:_MOST_DIFFERENCES]:
        notes.add_row(Text("all", "bold"), Text(f"{each.text}: {each.remedy}", "yellow"))
    return notes


def _models(host: Host) -> tuple[str, ...]:
    """What it serves, as far as it says."""
    return tuple(str(model.get("name")) for model in host["facts"].get("serves", ()))


def _told_of(host: Host, now: float) -> Iterator[str]:
    """What somebody wanted of it, or what nobody can have wanted."""
    state = state_of(host, now)
    if host["facts"].get("twin"):
        yield "two machines write under this name; give one another cluster.host"
    if state == "removed":
        yield "was removed and still writes: zimage down there"
    elif host["wanted"] == "out":
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(host["wanted_at"]))
        why = f": {host['wanted_reason']}" if host["wanted_reason"] else ""
        yield f"is wanted out since {since}{why}"
    if state == "lost":
        yield f"no front hears it, last row {output.span(now - host['at'])} ago"
    elif state == "silent":
        yield "writes nothing: zimage status there"
    elif abs(host["skew_s"]) > _WARN_SKEW_S:
        way = "ahead of" if host["skew_s"] > 0 else "behind"
        yield f"its clock is {way} the database's: let chrony or systemd-timesyncd set it"
    upgrade = host["facts"].get("upgrade", {})
    if upgrade.get("state") == "failed" and upgrade["version"] != host["version"]:
        yield f"did not take {upgrade['version']}: var/logs/upgrade.log there says why"


def _usual_version(hosts: Sequence[Host]) -> str:
    counted = Counter(host["version"] for host in hosts)
    return counted.most_common(1)[0][0] if counted else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
