"""When jobs will be done if nobody draws anything else."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from worker.coordination.cell_models import CellModels
from worker.coordination.lease_holder import Others
from worker.coordination.live_workers import live_workers
from worker.engine import Costs, Engine
from worker.engine.queue import expected_rows
from worker.jobs import model_costs
from worker.storage import job_turns
from worker.storage.database import Database, clock
from worker.storage.jobs import Job

_FRESH_S = 1.0


class JobEta:
    """Predictions for the jobs of the whole cell or cluster, computed at most once a second."""

    def __init__(
        self,
        database: Database,
        engine: Callable[[], Engine | None],
        others: Others,
        models: CellModels,
        run_dir: Path,
    ) -> None:
        self._database = database
        self._engine = engine
        self._others = others
        self._models = models
        self._run_dir = run_dir
        self._known: dict[str, float] = {}
        self._known_at = 0.0

    async def finish_times(self) -> dict[str, float]:
        """When each running job will be done, in seconds since the epoch, by its id. Of each turn
        only the first ``job_turns.FORESEEN`` of a model are known, and of a model that nobody has
        loaded none."""
        engine = self._engine()
        if engine is not None and time.monotonic() - self._known_at > _FRESH_S:
            running, elsewhere = await self._database.read(self._look)
            self._known = await asyncio.to_thread(self._predict, engine, running, elsewhere)
            self._known_at = time.monotonic()
        return self._known

    def _look(self, connection: sa.Connection) -> tuple[dict[str, list[Job]], int]:
        """What is to be drawn, by model, and how many workers other hosts have."""
        _, elsewhere = self._others(connection, clock(connection))
        foreseen = {
            model: job_turns.foreseen(connection, drawn)
            for model, drawn in self._models.drawn().items()
        }
        return {model: jobs for model, jobs in foreseen.items() if jobs}, elsewhere

    def _predict(
        self, engine: Engine, running: dict[str, list[Job]], elsewhere: int
    ) -> dict[str, float]:
        """Blocks. Each model has workers of its own."""
        own = self._models.own
        costs: dict[str, Costs | Engine] = {**model_costs.told(self._run_dir), own: engine}
        ends: dict[str, float] = {}
        for model in running.keys() & costs.keys():
            here = live_workers(self._run_dir, model if self._models.several else "")
            workers = elsewhere + (max(1, here) if model == own else here)
            if workers:
                ends |= predict(running[model], partial(_picture_s, costs[model]), workers)
        return ends


def predict(
    running: Sequence[Job],
    picture_s: Callable[[Job], float],
    workers: int,
    now: float | None = None,
) -> dict[str, float]:
    """When each job ends: turns share the workers equally, a turn's jobs come one after the other,
    and interactive jobs before all others."""
    at = time.time() if now is None else now
    ends: dict[str, float] = {}
    for priority in sorted({job.priority for job in running}):
        line = [job for job in running if job.priority == priority]
        at = _end_each(line, picture_s, workers, at, ends)
    return ends


def _end_each(
    line: Sequence[Job],
    picture_s: Callable[[Job], float],
    workers: int,
    at: float,
    ends: dict[str, float],
) -> float:
    """Fill ``ends`` from ``at`` on; when the last one is."""
    # A job ends when each turn that is not through has had as much as its own has up to it.
    taken_s: dict[str, float] = {}
    order: list[tuple[float, Job]] = []
    for job in sorted(line, key=lambda job: job.created_at):
        taken_s[job.turn] = taken_s.get(job.turn, 0.0) + _open(job) * picture_s(job)
        order.append((taken_s[job.turn], job))
    order.sort(key=lambda each: each[0])
    left = Counter(job.turn for job in line)
    before_s = 0.0
    for until_s, job in order:
        at += (until_s - before_s) * len(left) / workers
        before_s = until_s
        ends[job.id] = at
        left[job.turn] -= 1
        if not left[job.turn]:
            del left[job.turn]
    return at


def _open(job: Job) -> int:
    return job.counts["waiting"] + job.counts["running"]


def _picture_s(costs: Costs | Engine, job: Job) -> float:
    how = job.parameters
    return costs.picture_s(how.size, expected_rows(how), how.drawn_steps)
