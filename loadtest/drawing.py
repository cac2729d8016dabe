"""The engine in this process with a pipeline of fixed cost: no model, no network, no GPU.

Steps sleep for a known time, so latencies are those of queue and scheduler and not of a busy CPU.
"""

import contextlib
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from worker.coordination.heartbeat import HeartbeatFile
from worker.engine import Costs, Drawn, DrawRequest, Engine, Limits
from worker.engine.costs import KINDS
from worker.engine.queue import Size
from worker.models.synthetic import SyntheticPipeline
from worker.types import DrawSpec, Parameters

_numbers = itertools.count()
PARAMETERS = Parameters(256, 256, steps=8)
SPEC = DrawSpec("a cat", 0, PARAMETERS)


def spec(**changes: Any) -> DrawSpec:
    """``SPEC`` with other parameters."""
    return replace(SPEC, parameters=replace(PARAMETERS, **changes))


@contextlib.asynccontextmanager
async def drawing(
    source: str, sizes: Sequence[Size] = ((256, 256),), **limits: Any
) -> AsyncIterator[Engine]:
    """An engine on ``source`` that knows its costs at ``sizes``, as after a calibration."""
    pipeline, bounds = SyntheticPipeline(source), Limits(**limits)
    costs = known_costs(pipeline, sizes, bounds.max_batch)
    with tempfile.TemporaryDirectory(prefix="zimage-") as folder:
        engine = Engine(pipeline, HeartbeatFile(Path(folder) / "w1.beat"), bounds, costs)
        engine.start()
        try:
            yield engine
        finally:
            await engine.close()


def known_costs(pipeline: SyntheticPipeline, sizes: Sequence[Size], max_batch: int) -> Costs:
    """What calibration would measure: here the calls are timed, each once."""
    costs = Costs(max_batch)
    for (width, height), rows in itertools.product(sizes, range(1, max_batch + 1)):
        specs = [spec(width=width, height=height)] * rows
        times = [time.monotonic()]
        samples = pipeline.start(specs)
        times.append(time.monotonic())
        pipeline.step(samples, lambda done: True)
        times.append(time.monotonic())
        pipeline.finish(samples)
        times.append(time.monotonic())
        for kind, (began, ended) in zip(KINDS, itertools.pairwise(times), strict=True):
            costs.record(kind, (width, height), rows, ended - began)
    return costs


def request(key: str, spec: DrawSpec = SPEC, **fields: Any) -> DrawRequest:
    number = next(_numbers)
    fields = {"fingerprint": f"f{number}"} | fields
    return DrawRequest(f"r{number}", (spec,), time.time(), key=key, **fields)


async def draw(engine: Engine, asked: DrawRequest) -> tuple[float, list[Drawn]]:
    """Seconds until the answer, and the answer."""
    began = time.monotonic()
    drawn = await engine.submit(asked).result()
    return time.monotonic() - began, drawn
