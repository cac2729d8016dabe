"""A thousand requests that leave at random moments leave nothing behind."""

import asyncio
import gc
import random
import resource
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.worker.engine.conftest import Running
from tests.worker.engine.fakes import GatedPipeline, request
from worker.engine import Engine, Priority
from worker.errors import DeadlinePassed, Overloaded, ZimageError
from worker.models.base import Sample
from worker.models.synthetic import text_of
from worker.types import DrawSpec

pytestmark = pytest.mark.anyio


class Counting(GatedPipeline):
    """Knows which of its samples are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.options["step_ms"] = 0.2
        self.samples: weakref.WeakSet[Sample] = weakref.WeakSet()

    def start(self, specs: Sequence[DrawSpec]) -> list[Sample]:
        samples = super().start(specs)
        self.samples.update(samples)
        return samples


async def come_and_go(engine: Engine, rng: random.Random, number: int) -> str:
    """What became of one request."""
    prompts = [f"{number}-{k}" for k in range(rng.choice([1, 1, 1, 3]))]
    asked = request(*prompts, key=rng.choice("abc"), priority=rng.choice(list(Priority)))
    await asyncio.sleep(rng.uniform(0, 1.5))
    try:
        ticket = engine.submit(asked)
        # Some are patient, however slow the machine.
        patience_s = rng.choice([*[rng.uniform(0, 0.05)] * 9, 60.0])
        leave = asyncio.get_running_loop().call_later(patience_s, ticket.cancel)
        drawn = await asyncio.wait_for(ticket.result(), 60)
    except (Overloaded, DeadlinePassed, ZimageError) as error:
        return error.code
    leave.cancel()
    assert [text_of(each.pixels) for each in drawn] == [f"{p}|7|4" for p in prompts]
    return "drawn"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_nothing_is_left_of_a_thousand_that_were_cancelled(running: Running) -> None:
    pipeline, rng = Counting(), random.Random(0)
    async with running(pipeline, max_queued_requests=100) as engine:
        await asyncio.gather(*(come_and_go(engine, rng, k) for k in range(200)))
        files = open_files()
        memory_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ends = await asyncio.gather(*(come_and_go(engine, rng, k) for k in range(1000)))
        await asyncio.wait_for(engine.drained(), 60)
        driver = engine._driver
        driver.tick()  # forgets the samples of those that left last
        assert (len(driver.queue), driver._left, driver.announcements._announced) == (0, [], {})
    gc.collect()
    assert {"drawn", "cancelled"} <= set(ends) <= {"drawn", "cancelled", "overloaded"}
    assert len(pipeline.samples) == 0
    assert open_files() <= files
    assert "engine" not in {thread.name for thread in threading.enumerate()}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_kib < 50_000
