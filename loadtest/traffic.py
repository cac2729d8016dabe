"""Concurrent clients that check every answer for real.

A client posts, waits, verifies the picture, and posts again. On the synthetic model the picture
itself spells the prompt, seed and steps that made it; on any model size and seed are checked.
Nothing is retried: whatever reaches a client as an error is a failure.
"""

import asyncio
import base64
import io
import itertools
import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from PIL import Image

from loadtest.waiting import until_async
from worker.models.synthetic import text_of

TIMEOUT_S = 180.0


@dataclass
class Outcome:
    """One request as a client saw it. ``error`` is empty when everything was right."""

    started: float  # monotonic seconds
    latency_s: float
    worker: str
    status: int
    error: str = ""


@dataclass
class Traffic:
    """``clients`` closed-loop clients against ``url`` from ``start`` to ``stop``.

    ``body`` makes the request of client c's k-th turn; ``slow_readers`` of the clients read their
    answers at ``slow_bytes_per_s``. ``verify`` is httpx's: whom to trust where ``url`` is https.
    ``resends``: what meets a kept connection that is being closed is sent again, as browsers and
    SDKs do (RFC 9112, 9.3.1); nginx before 1.27.4 closes them so when it is reloaded.
    """

    url: str
    clients: int = 20
    slow_readers: int = 0
    slow_bytes_per_s: int = 2_000_000
    body: Callable[[int, int], dict[str, Any]] = field(
        default=lambda c, k: {"prompt": f"client {c} turn {k}", "size": "256x256"}
    )
    synthetic: bool = True
    think_s: float = 0.0
    verify: ssl.SSLContext | bool = True
    resends: bool = False
    outcomes: list[Outcome] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> "Traffic":
        self._tasks = [asyncio.create_task(self._client(c)) for c in range(self.clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.wait_for(asyncio.gather(*self._tasks), TIMEOUT_S)

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.error]

    async def until_served(self, count: int, timeout_s: float = 60.0) -> None:
        """Return once ``count`` more requests have been answered."""
        goal = len(self.outcomes) + count
        await until_async(lambda: len(self.outcomes) >= goal, timeout_s, f"{count} more answers")

    async def _client(self, client: int) -> None:
        async with httpx.AsyncClient(timeout=TIMEOUT_S, verify=self.verify) as http:
            for turn in itertools.count():
                if self._stop.is_set():
                    return
                self.outcomes.append(await self._turn(http, client, self.body(client, turn)))
                await asyncio.sleep(self.think_s)

    async def _turn(self, http: httpx.AsyncClient, client: int, body: dict[str, Any]) -> Outcome:
        started = time.monotonic()
        outcome = Outcome(started, 0.0, "", 0)
        try:
            response = await self._send(http, body)
            content = await self._read(response, slow=client < self.slow_readers)
            outcome.status = response.status_code
            outcome.worker = response.headers.get("x-worker", "")
            outcome.error = await asyncio.to_thread(
                check, response.status_code, content, body, synthetic=self.synthetic
            )
        except (httpx.HTTPError, ValueError, KeyError) as error:
            outcome.error = repr(error)
        outcome.latency_s = time.monotonic() - started
        return outcome

    async def _send(self, http: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
        steps: list[str] = []

        async def trace(step: str, _: object) -> None:
            steps.append(step)

        url, extensions = f"{self.url}/v1/images/generations", {"trace": trace}
        request = http.build_request("POST", url, json=body, extensions=extensions)
        try:
            return await http.send(request, stream=True)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            if not self.resends or "connection.connect_tcp.started" in steps:
                raise
        return await http.send(http.build_request("POST", url, json=body), stream=True)

    async def _read(self, response: httpx.Response, *, slow: bool) -> bytes:
        if not slow:
            return await response.aread()
        chunks = []
        async for chunk in response.aiter_raw(65536):
            chunks.append(chunk)
            await asyncio.sleep(len(chunk) / self.slow_bytes_per_s)
        return b"".join(chunks)


def check(status: int, content: bytes, body: dict[str, Any], *, synthetic: bool) -> str:
    """What is wrong with an answer to ``body``, or an empty string."""
    if status != 200:
        return f"HTTP {status}: {content[:300]!r}"
    answer = json.loads(content)
    if len(answer["data"]) != body.get("n", 1):
        return f"{len(answer['data'])} pictures instead of {body.get('n', 1)}"
    problems = (check_picture(item, body, synthetic=synthetic) for item in answer["data"])
    return next(filter(None, problems), "")


def check_picture(item: dict[str, Any], body: dict[str, Any], *, synthetic: bool) -> str:
    """What is wrong with one picture of an answer, or an empty string."""
    pixels = pixels_of(item["b64_json"])
    size = f"{pixels.shape[1]}x{pixels.shape[0]}"
    if size != body.get("size", size):
        return f"size {size} instead of {body['size']}"
    if synthetic:
        expected = f"{body['prompt']}|{item['seed']}|{body.get('steps', 8)}"
        if text_of(pixels) != expected:
            return f"picture of {text_of(pixels)!r} instead of {expected!r}"
    return ""


def pixels_of(b64_json: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decode one picture: height × width × 3."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64_json))).convert("RGB"))
