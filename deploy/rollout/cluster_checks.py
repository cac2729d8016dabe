"""How this machine takes part in its cluster, each finding with its remedy."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from deploy.cell import Cell
from deploy.cluster.differences import differences
from deploy.finding import Finding
from deploy.host import processes

_OLD_S = 10.0
"""The program ``membership`` writes every two seconds."""
_WARN_SKEW_S = 1.0
_WARN_DAYS = 20
_MOST_DIFFERENCES = 10


def doctor(cell: Cell) -> Iterator[Finding]:
    """Whether its list of hosts is of now, and what stands there of this one and the others."""
    if not cell.config.cluster.on or not processes.members(cell.layout.processes):
        return
    program = cell.programs().get("membership")
    if program is not None and program.state != "RUNNING":
        text = f"membership is {program.state}: other hosts do not hear of this one"
        yield Finding("fail", "cluster", text, "see zimage logs membership")
    try:
        told = json.loads(cell.layout.hosts_json.read_bytes())
        age_s = time.time() - cell.layout.hosts_json.stat().st_mtime
    except (OSError, ValueError):
        text = "nothing is known of other hosts"
        yield Finding("fail", "cluster", text, "see zimage logs membership")
        return
    if age_s > _OLD_S:
        text = f"the list of hosts is {age_s:.0f} s old: a front goes by it as it is"
        remedy = "make the database reachable; see zimage logs membership"
        yield Finding("warn", "cluster", text, remedy)
    yield from _of_hosts(cell.config.cluster.host_id, told["hosts"])


def certificates(cell: Cell) -> Iterator[Finding]:
    """By which hosts and fronts know each other: they renew themselves."""
    if not cell.config.cluster.on:
        return
    from deploy.cluster import certificates as own

    remedy = "see zimage logs membership, here and where zimage cluster init ran"
    for role in own.roles_of(cell.config.cluster.role):
        found = own.installed(cell.layout, role)
        subject = f"certificate as {role}"
        if found is None:
            text = "there is none: other machines of the cluster do not know this one"
            again = "zimage cluster init on the first machine, zimage up --join - on others"
            yield Finding("fail", subject, text, again)
            continue
        days = (found.not_valid_after_utc - datetime.now(UTC)).days
        text = f"of {cell.config.cluster.host_id}; ends on {found.not_valid_after_utc:%Y-%m-%d}"
        if days < 0:
            yield Finding("fail", subject, text, "join again: zimage hosts invite NAME")
        elif days < _WARN_DAYS:
            yield Finding("warn", subject, text, remedy)
        else:
            yield Finding("ok", subject, text)


def _of_hosts(own: str, hosts: list[dict[str, Any]]) -> Iterator[Finding]:
    here = [host for host in hosts if host["wanted"] != "removed"]
    for twin in (host["id"] for host in here if host["facts"].get("twin")):
        text = f"two machines write as {twin}: fronts send to one and to the other"
        yield Finding("fail", "cluster", text, "zimage down on the wrong one, and join it anew")
    for host in here:
        if abs(host["skew_s"]) > _WARN_SKEW_S:
            text = f"its clock is {host['skew_s']:+.1f} s off the database's"
            remedy = f"let chrony or systemd-timesyncd run on {host['id']}"
            yield Finding("warn", f"host {host['id']}", text, remedy)
    versions = sorted({host["version"] for host in here})
    if len(versions) > 1:
        text = f"hosts run {' and '.join(versions)}"
        yield Finding("warn", "cluster", text, "zimage hosts says which; zimage upgrade on each")
    for each in differences(here)[:_MOST_DIFFERENCES]:
        yield Finding("warn", "cluster", each.text, each.remedy)
    lost = [host["id"] for host in here if host["lost_at"] is not None]
    if lost:
        remedy = "look at them; gone for good: zimage hosts remove NAME"
        yield Finding("warn", "cluster", f"no front hears {', '.join(lost)}", remedy)
    if own in {host["id"] for host in here}:
        yield Finding("ok", "cluster", f"{own} is one of {len(here)} machines")
    else:
        text = f"{own} was removed"
        yield Finding("fail", "cluster", text, "zimage down, or join it again")
