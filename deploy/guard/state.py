"""The cell's state as one JSON file, for the page, ``zimage status`` and people."""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.guard.gpus import Gpu, Gpus
from deploy.guard.journal import Journal
from deploy.guard.settings import GuardSettings
from deploy.guard.watch import Watch
from worker import whole_file
from worker.coordination.heartbeat import DRAWING


def snapshot(
    settings: GuardSettings, watches: Iterable[Watch], journal: Journal, gpus: Gpus
) -> dict[str, Any]:
    """Times are seconds since the epoch."""
    workers = [_worker(watch, gpus.get(watch.device)) for watch in watches]
    n_open = sum(worker["open"] for worker in workers)
    return {
        "at": round(time.time(), 3),
        "name": settings.cell,
        "settings": settings.digest,
        "ready": n_open > 0,
        "alarms": journal.alarms,
        "pool": {"open": n_open, "of": len(workers)},
        "workers": workers,
        "events": list(journal.events),
    }


def write(path: Path, state: dict[str, Any]) -> None:
    """Readers see the old file or the new one, never half of it."""
    whole_file.replace(path, json.dumps(state, ensure_ascii=False))


def _worker(watch: Watch, gpu: Gpu | None) -> dict[str, Any]:
    said = watch.answer.body if watch.answer else {}
    heartbeat = watch.heartbeat if watch.process else None
    return {
        "name": watch.name,
        **({"model": watch.model} if watch.model else {}),
        "pid": watch.pid,
        "state": watch.state,
        "since": round(watch.since, 3),
        "open": watch.gate.is_open,
        "phase": heartbeat.phase.name.lower() if heartbeat else None,
        "phase_age_s": round(heartbeat.age_s(), 3) if heartbeat else None,
        "in_step": len(heartbeat.running) if heartbeat and heartbeat.phase in DRAWING else 0,
        "steps": heartbeat.steps if heartbeat else 0,
        "code": said.get("code"),
        "queued": said.get("queued", 0),
        "running": said.get("running", 0),
        "predicted_wait_s": said.get("predicted_wait_s"),
        "full": bool(said.get("full")),
        "restarts": watch.restarts,
        "last_exit": watch.last_exit,
        "last_fault": watch.last_fault,
        "device": watch.device,
        "device_name": watch.device_name,
        "resident_bytes": watch.resident_bytes(),
        "gpu": asdict(gpu) if gpu else None,
    }
