"""Who draws in this cell, and with which model."""

import json
from pathlib import Path
from typing import Any

from worker import whole_file
from worker.coordination.heartbeat import Phase, read_heartbeat
from worker.coordination.processes import is_alive

_LOADING = (Phase.BOOT, Phase.LOAD, Phase.ENDED)
_MODEL = ".model"
_COSTS = ".costs"
DIGEST = "digest"
"""Of the model's files, in what hosts of a cluster publish."""


def live_workers(run_dir: Path, model: str = "") -> int:
    """Blocks. How many workers live and have loaded their model, ``model`` alone where it is
    given."""
    beats = {path.stem: read_heartbeat(path) for path in run_dir.glob("*.beat")}
    if model:
        told = published(run_dir)
        beats = {
            name: beat for name, beat in beats.items() if told.get(name, {}).get("id") == model
        }
    loaded = [beat for beat in beats.values() if beat and beat.phase not in _LOADING]
    return sum(is_alive(beat.pid, beat.since) for beat in loaded)


def publish(run_dir: Path, worker: str, model: dict[str, Any]) -> None:
    """Leave what ``worker`` says of its ``model`` for all to read, also while it loads it again."""
    whole_file.replace(run_dir / f"{worker}{_MODEL}", json.dumps(model))


def publish_costs(run_dir: Path, worker: str, costs: dict[str, Any]) -> None:
    """The same of what drawing costs it."""
    whole_file.replace(run_dir / f"{worker}{_COSTS}", json.dumps(costs))


def published(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Blocks. What each worker has said of its model, by the worker's name, the newest last."""
    return _left(run_dir, _MODEL)


def published_costs(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Blocks. The same of what drawing costs."""
    return _left(run_dir, _COSTS)


def _left(run_dir: Path, suffix: str) -> dict[str, dict[str, Any]]:
    found: list[tuple[float, str, dict[str, Any]]] = []
    for path in run_dir.glob(f"*{suffix}"):
        try:
            found.append((path.stat().st_mtime, path.stem, dict(json.loads(path.read_bytes()))))
        except (OSError, ValueError, TypeError):
            continue  # gone, or nothing that one of ours wrote
    return {name: told for _, name, told in sorted(found, key=lambda each: each[0])}
