"""Are the predicted waits what comes, and does Retry-After keep its word?

Runs the engine with a pipeline of fixed cost. First a mixed load of sizes, steps and keys: every
position that a waiting request is told is compared with what was left of its wait in truth; 90 %
must be within 25 % or 0.3 s. Then more clients than there is room for: those that are refused come
again when they were told to; 90 % must then be admitted. Exit code 0 when both hold.
"""

import argparse
import asyncio
import random
import sys
import time
from dataclasses import dataclass, field

from loadtest.drawing import drawing, request, spec
from loadtest.measures import percentile
from worker.engine import Engine, Queued
from worker.engine.request import Drawn, DrawRequest
from worker.errors import Overloaded

SOURCE = "synthetic:step_ms=10,row_ms=2,megapixel_ms=90,encode_ms=10,decode_ms=20"
SIZES = ((256, 256), (512, 512), (768, 512))
STEPS = (4, 8, 8, 8, 12, 20)


@dataclass
class Told:
    """What one request was told, and when it began (both in monotonic seconds)."""

    waits: list[tuple[float, float]] = field(default_factory=list)  # at, predicted wait
    began: float | None = None

    def errors(self) -> list[tuple[float, float]]:
        """(predicted, true) wait at each telling."""
        began = self.began
        return [] if began is None else [(w, max(0.0, began - at)) for at, w in self.waits]


def honest(predicted_s: float, true_s: float) -> bool:
    return abs(predicted_s - true_s) <= max(0.3, 0.25 * true_s)


async def watch(engine: Engine, asked: DrawRequest) -> Told:
    """Draw and write down every prediction."""
    told, submitted = Told(), time.monotonic()
    ticket = engine.submit(asked)
    queue_ms: list[float] = []
    async for event in ticket.events():
        if isinstance(event, Queued):
            told.waits.append((time.monotonic(), event.wait_s))
        if isinstance(event, Drawn):
            queue_ms.append(event.queue_ms)
    told.began = submitted + min(queue_ms) / 1000
    return told


async def mixed_load(
    engine: Engine, rng: random.Random, clients: int, seconds: float
) -> list[Told]:
    """Clients in a closed loop, a third of the keys twice as busy as the others."""
    end, told = time.monotonic() + seconds, []

    async def client(number: int) -> None:
        await asyncio.sleep(rng.uniform(0, 2.0))
        while time.monotonic() < end:
            width, height = rng.choice(SIZES)
            asked = spec(width=width, height=height, steps=rng.choice(STEPS))
            told.append(await watch(engine, request(f"key {number % 5}", asked)))
            await asyncio.sleep(rng.expovariate(1 / 1.5))

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(number))
    return told


@dataclass
class Promises:
    kept: int = 0
    broken: int = 0
    admitted_at_once: int = 0


async def obey(engine: Engine, rng: random.Random, seconds: float, rate_hz: float) -> Promises:
    """Requests at ``rate_hz``, more than can be drawn; each that is refused comes again once."""
    promises = Promises()

    async def client(number: int) -> None:
        mark = f"request {number}"
        try:
            ticket = engine.submit(request(f"key {number % 7}", fingerprint=mark))
            promises.admitted_at_once += 1
        except Overloaded as refused:
            await asyncio.sleep(_whole(refused.retry_after_s))
            try:
                ticket = engine.submit(request(f"key {number % 7}", fingerprint=mark))
            except Overloaded:
                promises.broken += 1
                return
            promises.kept += 1
        await ticket.result()

    end, number = time.monotonic() + seconds, 0
    async with asyncio.TaskGroup() as group:
        while time.monotonic() < end:
            group.create_task(client(number))
            number += 1
            await asyncio.sleep(rng.expovariate(rate_hz))
    return promises


def _whole(seconds: float) -> int:
    return -int(-seconds // 1)  # the header has whole seconds


async def run(args: argparse.Namespace) -> bool:
    rng = random.Random(args.seed)
    async with drawing(args.source, SIZES, max_batch=4) as engine:
        told = await mixed_load(engine, rng, args.clients, args.seconds)
    pairs = [pair for each in told for pair in each.errors()]
    share = sum(honest(*pair) for pair in pairs) / len(pairs)
    errors = [abs(predicted - true) for predicted, true in pairs]
    longest = max(true for _, true in pairs)
    print(f"{len(told)} requests, {len(pairs)} predictions of waits up to {longest:.1f} s")
    early = sum(true > predicted for predicted, true in pairs) / len(pairs)
    print(f"began later than predicted: {early:.0%}")
    print(f"error: median {percentile(errors, 0.5):.2f} s, p90 {percentile(errors, 0.9):.2f} s")
    print(f"{'ok  ' if share >= 0.9 else 'FAIL'} within 25 % or 0.3 s: {share:.1%} (90 %)")
    async with drawing(args.source, max_queue_wait_s=4.0) as engine:
        promises = await obey(engine, rng, args.seconds, args.rate_hz)
        totals = engine.state().totals
    refused = promises.kept + promises.broken
    kept = promises.kept / max(1, refused)
    print(f"{promises.admitted_at_once} admitted at once, {refused} told when to come again")
    print(f"{'ok  ' if kept >= 0.9 else 'FAIL'} promises kept: {kept:.1%} (90 %)")
    inside = totals["device_s"] / totals["busy_s"]
    print(f"the drawing thread was inside the pipeline for {inside:.1%} of that time")
    return share >= 0.9 and kept >= 0.9 and refused > 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="loadtest/waits", description=__doc__)
    parser.add_argument("--source", default=SOURCE)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement")
    parser.add_argument("--clients", type=int, default=20, help="of the mixed load")
    parser.add_argument("--rate-hz", type=float, default=12.0, help="of the overload")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    sys.exit(0 if asyncio.run(run(arguments())) else 1)


if __name__ == "__main__":
    main()
