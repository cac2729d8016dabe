"""Pictures a second through a running cell, at three sizes.

Every prompt is new, so that no text is encoded twice. *alone*: one client, one after the other;
*saturated*: ``--clients`` that each ask again at once, counted from ``--warm-s`` on.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

MOST_FAILURES = 20


@dataclass
class Load:
    client: httpx.AsyncClient
    format: str
    numbers: Iterator[int] = field(
        default_factory=lambda: itertools.count(int(time.time()) % 10**6)
    )
    failed: int = 0

    async def draw(
        self, size: int | str, more: str = "", **fields: Any
    ) -> tuple[float, httpx.Response]:
        """Seconds at the client. ``size``: a square's side, or WIDTHxHEIGHT; ``more`` lengthens the
        prompt; ``fields`` of the request."""
        number = next(self.numbers)
        body = {
            "prompt": f"picture {number} of a harbour at dawn, {number * 7 % 1000} {more}".strip(),
            "size": size if isinstance(size, str) else f"{size}x{size}",
            "output_format": self.format,
            **fields,
        }
        began = time.perf_counter()
        response = await self.client.post("/v1/images/generations", json=body)
        if response.status_code != 200:
            self.failed += 1
            if self.failed > MOST_FAILURES:
                raise SystemExit(f"{response.status_code}: {response.text[:300]}")
            await asyncio.sleep(1.0)
        return time.perf_counter() - began, response

    async def alone(self, size: int | str, count: int) -> dict[str, Any]:
        await self.draw(size)
        drawn = [await self.draw(size) for _ in range(count)]
        return {
            "what": f"alone {size}",
            "median_s": round(statistics.median(seconds for seconds, _ in drawn), 3),
            "worst_s": round(max(seconds for seconds, _ in drawn), 3),
            "inference_ms": drawn[-1][1].headers.get("x-inference-ms"),
        }

    async def saturated(
        self, size: int, clients: int, warm_s: float, seconds: float
    ) -> dict[str, Any]:
        began = time.perf_counter()
        counted_from, stop = began + warm_s, began + warm_s + seconds
        ends: defaultdict[str, list[float]] = defaultdict(list)  # by worker
        batches: defaultdict[str, list[int]] = defaultdict(list)
        waits: list[float] = []

        async def loop() -> None:
            while time.perf_counter() < stop:
                took, response = await self.draw(size)
                now = time.perf_counter()
                if response.status_code == 200 and counted_from < now <= stop:
                    ends[worker := response.headers["x-worker"]].append(now)
                    waits.append(took)
                    batches[worker].append(int(response.headers["x-batch-size"]))

        await asyncio.gather(*(loop() for _ in range(clients)))
        sizes = list(itertools.chain(*batches.values()))
        return {
            "what": f"saturated {size}",
            "images_per_s": round(sum(rate(ends[w], batches[w]) for w in ends), 3),
            "seconds": seconds,
            "batch": round(statistics.mean(sizes), 1) if sizes else None,
            "median_s": round(statistics.median(waits), 2) if waits else None,
        }


def rate(ends: list[float], batches: list[int]) -> float:
    """A second, from when each picture of one worker came, and how many came with it: those after
    the first batch, over the time since it. Counting in a window, or several workers together,
    would be off by a batch."""
    first = batches[0] if batches else 0
    if len(ends) <= first or ends[-1] - ends[0] < 1.0:
        return 0.0
    return (len(ends) - first) / (ends[-1] - ends[first - 1])


async def measure(args: argparse.Namespace) -> int:
    limits = httpx.Limits(max_connections=args.clients)
    async with httpx.AsyncClient(base_url=args.url, timeout=300, limits=limits) as client:
        load = Load(client, args.format)
        for size in map(int, args.sizes.split(",")):
            note(args.out, await load.alone(size, args.alone))
            found = await load.saturated(size, args.clients, args.warm_s, args.seconds)
            note(args.out, found | {"clients": args.clients, "failed": load.failed})
    return int(load.failed > 0)


def note(out: Path | None, result: dict[str, Any]) -> None:
    print(json.dumps(result), flush=True)
    if out is not None:
        with out.open("a") as file:
            file.write(json.dumps(result) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--sizes", default="1024,512,256")
    parser.add_argument("--format", default="jpeg")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--alone", type=int, default=5)
    parser.add_argument("--warm-s", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, help="JSON lines, appended")
    return asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
