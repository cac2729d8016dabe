"""Twenty clients while a worker is killed or stopped every ten seconds: does anybody notice?

Runs against the cell of ``--config``, which must be up. Never touches the last worker that is
open. Exit code 0 when no request failed, 1 otherwise.
"""

import argparse
import asyncio
import contextlib
import random
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from deploy.config import DEFAULT_PATH, load
from loadtest.faults import Cell, kill, stop
from loadtest.traffic import Outcome, Traffic, until

FAULTS = {"kill -9": kill, "SIGSTOP": stop}


@dataclass(frozen=True)
class Injected:
    """One fault and what the pool did; seconds after the fault."""

    at: float  # monotonic
    name: str
    worker: str
    out_s: float
    back_s: float


async def inject(cell: Cell, rng: random.Random) -> Injected | None:
    """One random fault on one open worker; None when fewer than two are open."""
    candidates = sorted(cell.open())
    if len(candidates) < 2:
        return None
    worker, name = rng.choice(candidates), rng.choice(sorted(FAULTS))
    at, pid = time.monotonic(), cell.pid(worker)
    FAULTS[name](cell, worker)
    out_s = await until(lambda: worker not in cell.open(), 30, f"{worker} out of the pool")

    def back() -> bool:
        return worker in cell.open() and cell.pid(worker) != pid

    back_s = out_s + await until(back, 120, f"{worker} back in the pool")
    return Injected(at, name, worker, out_s, back_s)


async def keep_injecting(cell: Cell, every_s: float, rng: random.Random) -> list[Injected]:
    """Faults every ``every_s`` seconds, overlapping when a worker is slow to return."""
    running: list[asyncio.Task[Injected | None]] = []
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(every_s)
            running.append(asyncio.create_task(inject(cell, rng)))
    return [fault for fault in await asyncio.gather(*running) if fault]


async def failover(
    cell: Cell, traffic: Traffic, *, duration_s: float, every_s: float, seed: int
) -> list[Injected]:
    """Traffic for ``duration_s`` with faults; the faults that were injected."""
    async with traffic:
        injecting = asyncio.create_task(keep_injecting(cell, every_s, random.Random(seed)))
        await asyncio.sleep(duration_s)
        injecting.cancel()
        return await injecting


def report(outcomes: list[Outcome], faults: list[Injected]) -> None:
    print(f"\n{'fault':<9} {'worker':<7} {'out of pool':>12} {'back':>9}")
    for fault in faults:
        print(f"{fault.name:<9} {fault.worker:<7} {fault.out_s:>10.2f} s {fault.back_s:>7.1f} s")
    latencies = sorted(outcome.latency_s for outcome in outcomes)
    p95 = latencies[int(0.95 * (len(latencies) - 1))]
    failures = [outcome for outcome in outcomes if outcome.error]
    print(f"\n{len(outcomes)} requests, {len(failures)} failed")
    print(f"latency: median {statistics.median(latencies):.2f} s, p95 {p95:.2f} s,", end=" ")
    print(f"longest {latencies[-1]:.2f} s")
    for outcome in failures[:10]:
        print(f"  failed: {outcome.error[:200]}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="loadtest/failover", description=__doc__)
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--duration-s", type=float, default=120.0)
    parser.add_argument("--every-s", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0, help="of the faults' order")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    config = load(args.config)
    traffic = Traffic(
        f"http://{config.listen.address}:{config.listen.port}",
        clients=args.clients,
        synthetic=config.model.source.startswith("synthetic"),
    )
    faults = asyncio.run(
        failover(
            Cell.of(config, args.config),
            traffic,
            duration_s=args.duration_s,
            every_s=args.every_s,
            seed=args.seed,
        )
    )
    report(traffic.outcomes, faults)
    sys.exit(1 if traffic.failures or not traffic.outcomes else 0)


if __name__ == "__main__":
    main()
