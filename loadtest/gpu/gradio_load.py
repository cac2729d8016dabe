"""Pictures a second of ``gradio_app``, asked as Gradio's own page asks."""

import asyncio
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from loadtest import gradio_process

_START_S = 120.0


@contextlib.contextmanager
def started(model: Path, port: int, device: str, log: Path) -> Iterator[str]:
    """Its address, once it answers."""
    command = [sys.executable, "-m", "loadtest.gpu.gradio_app", str(model), str(port)]
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = "" if device == "cpu" else device
    with gradio_process.running(command, environment, port, log, _START_S) as url:
        yield url


async def rate(url: str, file: str, side: int, seconds: float, clients: int = 4) -> dict[str, Any]:
    """``clients`` that each ask again at once, as ``file``, counted after the first ``clients``."""
    numbers = itertools.count()
    ends: list[float] = []
    sizes: list[int] = []
    async with httpx.AsyncClient(timeout=300) as client:

        async def ask() -> None:
            while len(ends) <= clients or time.perf_counter() < ends[clients - 1] + seconds:
                prompt = f"picture {next(numbers)} of a harbour at dawn"
                sizes.append(len(await _drawn(client, url, file, prompt, side)))
                ends.append(time.perf_counter())

        await asyncio.gather(*(ask() for _ in range(clients)))
    first, stop = ends[clients - 1], ends[clients - 1] + seconds
    last = max(end for end in ends if end <= stop)
    count = sum(first < end <= last for end in ends)
    kib = round(sum(sizes) / len(sizes) / 1024)
    return {"images_per_s": round(count / (last - first), 3), "count": count, "kib": kib}


async def _drawn(client: httpx.AsyncClient, url: str, file: str, prompt: str, side: int) -> bytes:
    path = f"{url}/gradio_api/call/{file}"
    joined = await client.post(path, json={"data": [prompt, side]})
    events = (await client.get(f"{path}/{joined.raise_for_status().json()['event_id']}")).text
    event, _, data = events.strip().rpartition("event: ")[2].partition("\ndata: ")
    if event != "complete":
        raise RuntimeError(f"Gradio: {events[-300:]}")
    picture = await client.get(json.loads(data)[0]["url"])
    return picture.raise_for_status().content
