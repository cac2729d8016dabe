"""What a guard and a host say, for tests to change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from deploy.cluster.settings import MembershipSettings
from worker.storage.hosts import Host

NOW = 1_800_000_000.0


def settings(folder: Path, **changes: Any) -> MembershipSettings:
    told = MembershipSettings(
        cluster="studio",
        host="a",
        address="10.0.0.7:7862",
        role="both",
        version="1.0.0",
        models=("z-image",),
        workers=2,
        database_url="sqlite:///none",
        var_dir=folder,
        run_dir=folder / "run",
        cell_json=folder / "cell.json",
        hosts_json=folder / "hosts.json",
        metrics=folder / "hosts.prom",
        targets_json=folder / "targets.json",
        host_drained_flag=folder / "host.drained",
        upgrade_json=folder / "host-upgrade.json",
        upgrade_log=folder / "upgrade.log",
        upgrade_command=("false",),
        versions_dir=folder,
        lost_s=1.5,
    )
    return told.model_copy(update=changes)


def worker(**changes: Any) -> dict[str, Any]:
    """As the guard tells of one."""
    idle = {"state": "ready", "open": True, "queued": 0, "running": 0, "predicted_wait_s": None}
    return {"name": "w1", **idle, "device_name": "H100", **changes}


def cell(*workers: dict[str, Any], at: float = NOW, **more: Any) -> dict[str, Any]:
    return {"at": at, "workers": list(workers), **more}


def front(id: str, hears: dict[str, tuple[float, bool]] | None = None, **changes: Any) -> Host:
    """One that hears hosts: for how long each was silent, and whether it is let in."""
    told = {host: {"silent_s": s, "open": is_open} for host, (s, is_open) in (hears or {}).items()}
    facts = {} if hears is None else {"hears": told}
    return replace(host(id, role="front", workers=0, ready=0), facts=facts, **changes)


def host(id: str, **changes: Any) -> Host:
    said = Host(
        id=id,
        address=f"{id}:7862",
        role="host",
        version="1.0.0",
        models=("z-image",),
        workers=2,
        ready=2,
        queued=0,
        running=0,
        wait_s=0.0,
        skew_s=0.0,
        state="ready",
        facts={},
        joined_at=NOW - 1000,
        at=NOW,
        since=NOW - 100,
        wanted="in",
        wanted_reason="",
        wanted_at=NOW - 1000,
        wanted_version="",
        wanted_version_at=NOW - 1000,
        lost_at=None,
    )
    return replace(said, **changes)
