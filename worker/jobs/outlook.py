"""When jobs will be done if nobody draws anything else."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from worker.engine import Engine
from worker.jobs.workers import live_workers
from worker.storage import jobs
from worker.storage.database import Database
from worker.storage.jobs import Job

_FRESH_S = 1.0


class Outlook:
    """Predictions for the jobs of the whole cell, computed at most once a second."""

    def __init__(
        self, database: Database, engine: Callable[[], Engine | None], run_dir: Path
    ) -> None:
        self._database = database
        self._engine = engine
        self._run_dir = run_dir
        self._known: dict[str, float] = {}
        self._known_at = 0.0

    async def finish_times(self) -> dict[str, float]:
        """When each running job will be done, in seconds since the epoch, by its id."""
        engine = self._engine()
        if engine is not None and time.monotonic() - self._known_at > _FRESH_S:
            running = await self._database.read(jobs.unfinished)
            workers = await asyncio.to_thread(live_workers, self._run_dir)
            self._known = predict(running, lambda job: _picture_s(engine, job), workers)
            self._known_at = time.monotonic()
        return self._known


def predict(
    running: Sequence[Job],
    picture_s: Callable[[Job], float],
    workers: int,
    now: float | None = None,
) -> dict[str, float]:
    """When each job ends: turns share the workers equally, a turn's jobs come one after the other,
    and interactive jobs before all others."""
    at = time.time() if now is None else now
    left_s = {job.id: _open(job) * picture_s(job) for job in running}
    lines: dict[tuple[int, str], list[Job]] = {}
    for job in sorted(running, key=lambda job: job.created_at):
        lines.setdefault((job.priority, job.turn), []).append(job)
    ends: dict[str, float] = {}
    while lines:
        first = min(priority for priority, _ in lines)
        heads = {key: line[0] for key, line in lines.items() if key[0] == first}
        share = workers / len(heads)
        span_s = min(left_s[job.id] for job in heads.values())
        at += span_s / share
        for key, job in heads.items():
            left_s[job.id] -= span_s
            if left_s[job.id] <= 0:
                ends[job.id] = at
                lines[key].pop(0)
                if not lines[key]:
                    del lines[key]
    return ends


def _open(job: Job) -> int:
    return job.counts["waiting"] + job.counts["running"]


def _picture_s(engine: Engine, job: Job) -> float:
    rows = 2 if job.guidance_scale > 0 else 1
    return engine.picture_s((job.width, job.height), rows, job.steps)
