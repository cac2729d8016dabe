"""Pipelines and waiters for the engine's tests. A picture spells what it was drawn from."""

import asyncio
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import settings

from worker.engine.costs import Costs
from worker.engine.queue import Entry
from worker.engine.request import Drawn, DrawRequest, Event
from worker.errors import ZimageError
from worker.models.base import OnInnerStep, Sample
from worker.models.synthetic import SyntheticPipeline, text_of
from worker.types import DrawSpec, Parameters, SourceImage

PATIENCE_S = 30.0
fuzzed = settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "200")))
"""For property tests; ``scripts/fuzz`` asks for more."""

_numbers = itertools.count()
_recorders: "dict[int, Recorder]" = {}

Hook = Callable[[list[str]], object]


def spec(prompt: str = "a cat", **fields: Any) -> DrawSpec:
    seed = fields.pop("seed", 7)
    return DrawSpec(prompt, seed, replace(Parameters(128, 128, steps=4), **fields))


def edit(prompt: str = "a cat", strength: float = 0.5, **fields: Any) -> DrawSpec:
    """From a black picture."""
    wanted = spec(prompt, strength=strength, **fields)
    how = wanted.parameters
    return replace(wanted, source=SourceImage("", np.zeros((how.height, how.width, 3), np.uint8)))


def request(*prompts: str, arrived_at: float | None = None, **fields: Any) -> DrawRequest:
    """One picture for each prompt, arrived now unless told otherwise."""
    number = next(_numbers)
    specs = fields.pop("specs", None) or tuple(spec(prompt) for prompt in prompts)
    arrived_at = time.time() if arrived_at is None else arrived_at
    return DrawRequest(fields.pop("id", f"r{number}"), specs, arrived_at, **fields)


class GatedPipeline(SyntheticPipeline):
    """Takes no time and records its calls as (name, prompts).

    ``gated``: a step announces itself in ``entered`` and waits for ``permit``. ``hooks`` run
    inside the call of that name and may raise.
    """

    def __init__(self, *, gated: bool = False, **info: Any) -> None:
        super().__init__("synthetic:step_ms=0")
        self.info = replace(self.info, **info)
        self.calls: list[tuple[str, list[str]]] = []
        self.hooks: dict[str, Hook] = {}
        self.entered: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        self.closed = False
        self._gated = gated
        self._permits = threading.Semaphore(0)

    def permit(self, steps: int = 1) -> None:
        self._permits.release(steps)

    def open(self) -> None:
        self._gated = False
        self._permits.release(1000)

    async def next_step(self) -> list[str]:
        """Wait until a gated step is inside; the prompts in it."""
        return await asyncio.to_thread(self.entered.get, timeout=PATIENCE_S)

    def prompts(self, name: str) -> list[list[str]]:
        return [prompts for call, prompts in self.calls if call == name]

    def encode_image(self, spec: DrawSpec) -> None:
        self._called("image", [spec.prompt])
        super().encode_image(spec)

    def start(self, specs: Sequence[DrawSpec]) -> list[Sample]:
        self._called("start", [each.prompt for each in specs])
        return super().start(specs)

    def step(self, samples: Sequence[Sample], on_inner_step: OnInnerStep) -> None:
        prompts = [sample.spec.prompt for sample in samples]
        if self._gated:
            self.entered.put(prompts)
            assert self._permits.acquire(timeout=PATIENCE_S)
        self._called("step", prompts)
        super().step(samples, on_inner_step)

    def finish(self, samples: Sequence[Sample]) -> list[Any]:
        self._called("finish", [sample.spec.prompt for sample in samples])
        return super().finish(samples)

    def close(self) -> None:
        self.closed = True

    def _called(self, name: str, prompts: list[str]) -> None:
        self.calls.append((name, prompts))
        if hook := self.hooks.get(name):
            hook(prompts)


class Untimed(Costs):
    """Every batch up to ``max_batch`` pays: these steps take no time that could be compared."""

    def compared(self, size: tuple[int, int]) -> bool:
        return False


class WholePipeline(GatedPipeline):
    """Draws in one ``step`` call; gated at each inner step."""

    def __init__(self, *, gated: bool = False) -> None:
        super().__init__(gated=gated, stepwise=False)

    def step(self, samples: Sequence[Sample], on_inner_step: OnInnerStep) -> None:
        prompts = [sample.spec.prompt for sample in samples]
        self._called("step", prompts)
        for done in range(1, samples[0].steps + 1):
            if self._gated:
                self.entered.put(prompts)
                assert self._permits.acquire(timeout=PATIENCE_S)
            if not on_inner_step(done):
                return
        for sample in samples:
            sample.step_index = sample.steps


@dataclass
class Recorder:
    """A waiter that remembers what it was told."""

    keep: bool = False
    events: list[Event] = field(default_factory=list)
    errors: list[ZimageError] = field(default_factory=list)

    def post(self, event: Event) -> None:
        self.events.append(event)

    def fail(self, error: ZimageError) -> None:
        self.errors.append(error)

    @property
    def texts(self) -> list[str]:
        return [text_of(event.pixels) for event in self.events if isinstance(event, Drawn)]


def entry(*prompts: str, **fields: Any) -> Entry:
    """An entry with a Recorder for a waiter."""
    number = next(_numbers)
    _recorders[number] = Recorder()
    return Entry(request(*prompts, **fields), _recorders[number], number)


def recorder(one: Entry) -> Recorder:
    """That of ``one``, which forgets it once it is answered."""
    return _recorders[one.sequence]
