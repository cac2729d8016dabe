"""Who else draws in this cell, and with which model."""

import json
from pathlib import Path
from typing import Any

from worker import whole_file
from worker.coordination.heartbeat import Phase, read_heartbeat
from worker.coordination.processes import is_alive

_LOADING = (Phase.BOOT, Phase.LOAD, Phase.ENDED)
_MODEL = ".model"
DIGEST = "digest"
"""Of the model's files, in what hosts of a cluster publish."""


def live_workers(run_dir: Path, model: str = "") -> int:
    """Blocks. How many workers live and have loaded their model, ``model`` alone where it is given;
    at least one asks."""
    beats = {path.stem: read_heartbeat(path) for path in run_dir.glob("*.beat")}
    if model:
        told = published(run_dir)
        beats = {
            name: beat for name, beat in beats.items() if told.get(name, {}).get("id") == model
        }
    loaded = [beat for beat in beats.values() if beat and beat.phase not in _LOADING]
    return max(1, sum(is_alive(beat.pid, beat.since) for beat in loaded))


def publish(run_dir: Path, worker: str, model: dict[str, Any]) -> None:
    """Leave what ``worker`` says of its ``model`` for all to read, also while it loads it again."""
    whole_file.replace(run_dir / f"{worker}{_MODEL}", json.dumps(model))


def published(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Blocks. What each worker has said of its model, by the worker's name, the newest last."""
    found: list[tuple[float, str, dict[str, Any]]] = []
    for path in run_dir.glob(f"*{_MODEL}"):
        try:
            found.append((path.stat().st_mtime, path.stem, dict(json.loads(path.read_bytes()))))
        except (OSError, ValueError, TypeError):
            continue  # gone, or nothing that one of ours wrote
    return {name: model for _, name, model in sorted(found, key=lambda each: each[0])}
