"""What drawing costs with each model of a cell, as its workers tell it in files: so any worker can
predict when the jobs of all models are done."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker.coordination.live_workers import publish_costs, published_costs
from worker.engine import Costs, Engine
from worker.generation.components import Components

_TELL_EVERY_S = 1.0


async def tell(
    run_dir: Path, worker: str, model: str, ready: Callable[[], Components | None]
) -> None:
    """For ever: write what ``worker`` has measured whenever it has learnt more."""
    told: dict[str, Any] = {}
    while True:
        drawing = ready()
        news = told if drawing is None else _of(model, drawing.engine)
        if news != told:
            await asyncio.to_thread(publish_costs, run_dir, worker, news)
            told = news
        await asyncio.sleep(_TELL_EVERY_S)


def _of(model: str, engine: Engine) -> dict[str, Any]:
    limits = {"max_batch": engine.max_batch, "memory_limit": engine.memory_limit}
    return {"model": model, **limits, "costs": engine.costs()}


def told(run_dir: Path) -> dict[str, Costs]:
    """Blocks. What each model costs, by its name, as the worker says that learnt last."""
    found = {}
    for each in published_costs(run_dir).values():
        try:
            limits = each["max_batch"], each["memory_limit"]
            found[str(each["model"])] = Costs.load(each["costs"], *limits)
        except (KeyError, ValueError, TypeError, AttributeError):
            continue  # of a version that measured otherwise
    return found
