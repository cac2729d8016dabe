"""Does a flood of one key, or a flood of batch work, make others wait?

Runs the engine with a pipeline of fixed cost (``--source``). Exit code 0 when every promise held:
the polite key's p95 is at most twice its idle latency, an interactive p95 beside saturating batch
work at most 1.5 times idle and one step, and batch work keeps 5 % of the device's time.
"""

import argparse
import asyncio
import sys
from dataclasses import dataclass

from loadtest.drawing import PARAMETERS, draw, drawing, request, spec
from loadtest.measures import percentile
from worker.engine import Engine, Priority
from worker.errors import Overloaded

SOURCE = "synthetic:step_ms=20,row_ms=20,encode_ms=10,decode_ms=20"
"""An image: 350 ms alone; four together 25 % less each: about a GPU at 512²."""


@dataclass(frozen=True)
class Verdict:
    """One promise: ``measured`` must be at most ``allowed``."""

    name: str
    measured: float
    allowed: float

    @property
    def kept(self) -> bool:
        return self.measured <= self.allowed

    def __str__(self) -> str:
        mark = "ok  " if self.kept else "FAIL"
        return f"{mark} {self.name}: {self.measured:.3f} (at most {self.allowed:.3f})"


async def idle_s(source: str, count: int) -> float:
    async with drawing(source) as engine:
        return percentile([(await draw(engine, request("polite")))[0] for _ in range(count)], 0.95)


async def polite(engine: Engine, seconds: float, every_s: float) -> list[float]:
    """Latencies of a key that asks every ``every_s`` seconds, whatever becomes of the last."""
    tasks = []
    for _ in range(max(1, int(seconds / every_s))):
        tasks.append(asyncio.create_task(draw(engine, request("polite"))))
        await asyncio.sleep(every_s)
    return [seconds for seconds, _ in await asyncio.gather(*tasks)]


async def flood_of(engine: Engine, count: int, priority: Priority, *, steps: int) -> None:
    """``count`` requests of one key at all times; what is refused is sent again."""
    asked = spec(steps=steps)

    async def client(number: int) -> None:
        while True:
            try:
                key, mark = "flood", f"flood {number}"
                await draw(engine, request(key, asked, priority=priority, fingerprint=mark))
            except Overloaded as refused:
                await asyncio.sleep(min(refused.retry_after_s, 1.0))

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(client(number))


async def beside(
    source: str, seconds: float, every_s: float, flood: int, priority: Priority
) -> list[float]:
    """The polite key's latencies beside a flood of ``priority``."""
    async with drawing(source) as engine:
        flooding = asyncio.create_task(flood_of(engine, flood, priority, steps=PARAMETERS.steps))
        try:
            await asyncio.sleep(1.0)
            return await polite(engine, seconds, every_s)
        finally:
            flooding.cancel()
            await asyncio.wait([flooding])


async def batch_share(source: str, seconds: float) -> float:
    """Share of the pictures that batch work gets while interactive requests saturate."""
    done = {Priority.INTERACTIVE: 0, Priority.BATCH: 0}
    short = spec(steps=2)

    async def client(engine: Engine, priority: Priority) -> None:
        while True:
            await draw(engine, request(f"key {priority}", short, priority=priority))
            done[priority] += 1

    async with drawing(source, max_batch=1) as engine, asyncio.TaskGroup() as group:
        tasks = [group.create_task(client(engine, p)) for p in Priority for _ in range(4)]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
    return done[Priority.BATCH] / max(1, sum(done.values()))


async def run(args: argparse.Namespace) -> list[Verdict]:
    idle = await idle_s(args.source, 5)
    step_s = await one_step_s(args.source)
    interactive = await beside(
        args.source, args.seconds, args.every_s, args.flood, Priority.INTERACTIVE
    )
    batch = await beside(args.source, args.seconds, args.every_s, args.flood, Priority.BATCH)
    share = await batch_share(args.source, args.seconds)
    print(f"idle p95 {idle:.3f} s, a full step {step_s:.3f} s, {len(interactive)} polite requests")
    return [
        Verdict("p95 beside a flood of one key, s", percentile(interactive, 0.95), 2 * idle),
        Verdict("p95 beside batch work, s", percentile(batch, 0.95), 1.5 * idle + step_s),
        Verdict("time that batch work lacks to 5 %", 0.05 - share, 0.01),
    ]


async def one_step_s(source: str) -> float:
    async with drawing(source) as engine:
        return engine.predict_s("step", PARAMETERS.size, 4)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="loadtest/fairness", description=__doc__)
    parser.add_argument("--source", default=SOURCE)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement")
    parser.add_argument("--every-s", type=float, default=2.0, help="between polite requests")
    parser.add_argument("--flood", type=int, default=200, help="requests of the flood at a time")
    return parser.parse_args()


def main() -> None:
    verdicts = asyncio.run(run(arguments()))
    print("\n".join(map(str, verdicts)))
    sys.exit(0 if all(verdict.kept for verdict in verdicts) else 1)


if __name__ == "__main__":
    main()
