"""Does a job fill what interactive requests leave, and do they notice it?

One worker with its runner and its database, in this process, on a pipeline of fixed cost: a batch
of four takes little longer per picture than one alone, as on a GPU that is full. Three
measurements: interactive requests alone; a job alone; both at once. The work done at once
(pictures of both) must be at least 95 % of what the job alone gets done in the same time, and the
p95 of interactive requests at most 1.5 × that of the idle worker plus one step of a full batch.
Exit code 0 when both hold.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

from loadtest.drawing import PARAMETERS, SPEC, draw, request
from loadtest.measures import percentile
from worker.lifecycle import Lifecycle
from worker.models.synthetic import SyntheticPipeline
from worker.settings import Settings
from worker.storage import jobs
from worker.storage.database import sqlite_url
from worker.storage.jobs import MAX_ITEMS, Job, JobSpec, Share
from worker.storage.migrations import migrate

SOURCE = "synthetic:step_ms=5,row_ms=25,encode_ms=10,decode_ms=10"
STEPS = 8
BATCH = 4
_SHARE = Share(open_jobs=10, open_images=MAX_ITEMS, stored_bytes=1 << 30)
_SETTLE_S = 3.0


@dataclass
class Measured:
    """``pictures_hz``: pictures of all kinds a second; ``busy``: share of the time that the device
    works; ``latencies_s`` of interactive requests."""

    pictures_hz: float
    busy: float
    latencies_s: list[float]

    @property
    def p95_s(self) -> float:
        return percentile(self.latencies_s, 0.95)


@contextlib.asynccontextmanager
async def worker(source: str) -> AsyncIterator[Lifecycle]:
    """A ready worker with a database of its own."""
    with tempfile.TemporaryDirectory(prefix="zimage-") as folder:
        home = Path(folder)
        migrate(sqlite_url(home / "zimage.db"))
        settings = Settings(run_dir=home / "run", var_dir=home, model=source, max_batch=BATCH)
        service = Lifecycle(settings, lambda _: SyntheticPipeline(source))
        await service.start()
        try:
            while service.not_ready():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            yield service
        finally:
            await service.close()


async def interactive(service: Lifecycle, rate_hz: float, seconds: float) -> list[float]:
    """Latencies of requests that come at random moments."""
    rng, latencies = random.Random(0), list[float]()
    end = time.monotonic() + seconds

    async def one() -> None:
        latencies.append((await draw(service.model.engine, request("person", SPEC)))[0])

    async with asyncio.TaskGroup() as group:
        while time.monotonic() < end:
            await asyncio.sleep(rng.expovariate(rate_hz))
            group.create_task(one())
    return latencies


async def measure(service: Lifecycle, rate_hz: float, seconds: float) -> Measured:
    """``rate_hz`` 0: nobody asks."""
    before, began = service.model.engine.state().totals, time.monotonic()
    latencies = await interactive(service, rate_hz, seconds) if rate_hz else []
    if not rate_hz:
        await asyncio.sleep(seconds)
    after, wall_s = service.model.engine.state().totals, time.monotonic() - began
    drawn = after["pictures_drawn"] - before["pictures_drawn"]
    busy = (after["device_s"] - before["device_s"]) / wall_s
    return Measured(drawn / wall_s, busy, latencies)


async def start_job(service: Lifecycle) -> Job:
    wish = JobSpec(
        name="background",
        prompts=("a cat",) * MAX_ITEMS,
        first_seed=0,
        parameters=replace(PARAMETERS, steps=STEPS),
        output_format="png",
        quality=None,
        priority=1,
        idempotency_key=None,
        digest="",
    )
    job = await service.components.database.run(
        lambda c: jobs.create(c, wish, "everyone", "job", "0" * 32, time.time(), _SHARE)
    )
    service.components.jobs.notify()
    return job


async def run(args: argparse.Namespace) -> bool:
    async with worker(args.source) as service:
        await interactive(service, args.rate_hz, _SETTLE_S)
        idle = await measure(service, args.rate_hz, args.seconds)
        await start_job(service)
        await asyncio.sleep(_SETTLE_S)
        alone = await measure(service, 0.0, args.seconds)
        both = await measure(service, args.rate_hz, args.seconds)
        step_s = service.model.engine.predict_s("step", PARAMETERS.size, BATCH)
    print(f"idle:  p95 {idle.p95_s * 1000:.0f} ms of {len(idle.latencies_s)} requests")
    print(f"job:   {alone.pictures_hz:.2f} pictures/s, device busy {alone.busy:.1%}")
    print(
        f"both:  {both.pictures_hz:.2f} pictures/s, device busy {both.busy:.1%}, "
        f"p95 {both.p95_s * 1000:.0f} ms of {len(both.latencies_s)} requests"
    )
    share, most_s = both.pictures_hz / alone.pictures_hz, 1.5 * idle.p95_s + step_s
    filled, unseen = share >= 0.95, both.p95_s <= most_s
    print(f"{'ok  ' if filled else 'FAIL'} work done of that of the job alone: {share:.1%} (95 %)")
    print(
        f"{'ok  ' if unseen else 'FAIL'} p95 {both.p95_s * 1000:.0f} ms (at most 1.5 × idle + one "
        f"step = {most_s * 1000:.0f} ms)"
    )
    return filled and unseen


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="loadtest/utilisation", description=__doc__)
    parser.add_argument("--source", default=SOURCE)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement")
    parser.add_argument("--rate-hz", type=float, default=1.0, help="of interactive requests")
    return parser.parse_args()


def main() -> None:
    sys.exit(0 if asyncio.run(run(arguments())) else 1)


if __name__ == "__main__":
    main()
