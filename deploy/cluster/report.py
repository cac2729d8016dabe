"""What a host says of itself, from what its guard has written. Pure."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from deploy.cluster.settings import MembershipSettings
from worker.storage.hosts import HostReport, Wanted

STALE_S = 5.0
"""The guard writes every second; what is older comes from a dead one."""

Cell = Mapping[str, Any]
"""The content of ``cell.json``."""

_WAITING = ("loading", "draining", "drained", "silent", "stuck", "backoff", "fatal", "dead")
"""States of workers that are out of the pool, the most hopeful first."""


def fresh(cell: Cell | None, now: float) -> Cell | None:
    """``cell``, unless it says nothing of the present; ``now`` is by this machine's clock."""
    return cell if cell is not None and abs(now - cell["at"]) <= STALE_S else None


def is_empty(cell: Cell | None) -> bool:
    """Whether the guard has said that nothing is queued or drawn here."""
    return cell is not None and not any(w["queued"] + w["running"] for w in cell["workers"])


def report(
    settings: MembershipSettings,
    cell: Cell | None,
    *,
    wanted: Wanted,
    is_drained: bool,
    skew_s: float,
    upgrade: Mapping[str, Any] | None = None,
) -> HostReport:
    """``cell`` is None where the guard says nothing. ``is_drained``: it was out and empty for long
    enough, as far as somebody wants it out. ``upgrade``: what came of the one that is wanted."""
    workers = cell["workers"] if cell else []
    is_open = [worker for worker in workers if worker["open"]]
    waits = [worker["predicted_wait_s"] or 0.0 for worker in is_open]
    return HostReport(
        id=settings.host,
        address=settings.address,
        role=settings.role,
        version=settings.version,
        models=settings.models,
        workers=settings.workers,
        ready=len(is_open),
        queued=sum(worker["queued"] for worker in workers),
        running=sum(worker["running"] for worker in workers),
        wait_s=round(min(waits, default=0.0), 3),
        skew_s=round(skew_s, 3),
        state=_state(settings, cell, wanted=wanted, is_drained=is_drained),
        facts={**_facts(cell), **({"upgrade": upgrade} if upgrade else {})},
    )


def _state(
    settings: MembershipSettings, cell: Cell | None, *, wanted: Wanted, is_drained: bool
) -> str:
    if cell is None:
        return "silent"
    if wanted != "in":
        return "drained" if is_drained else "draining"
    if not settings.workers:
        return "ready"
    workers = cell["workers"]
    if any(worker["open"] for worker in workers):
        return "busy" if any(worker["running"] for worker in workers) else "ready"
    found = {worker["state"] for worker in workers}
    return next((state for state in _WAITING if state in found), "dead")


def _facts(cell: Cell | None) -> dict[str, Any]:
    if cell is None:
        return {}
    devices = Counter(worker["device_name"] for worker in cell["workers"])
    hears = {
        host["id"]: {"silent_s": host["silent_s"], "open": bool(host.get("open"))}
        for host in cell.get("hosts", ())
        if host["silent_s"] is not None
    }
    names = [worker["name"] for worker in cell["workers"]]
    return {"devices": dict(devices), "workers": names, **({"hears": hears} if hears else {})}
