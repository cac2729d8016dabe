"""Do drawings from text, from pictures, within masks and with adapters share steps without loss?

One engine in this process. Clients in a closed loop ask for each kind alone and then for all four
in turn, one after the other, in rounds. What a picture of the mix takes, against what the same
pictures take unmixed: throughput must be at least 95 %. Exit code 0 when it is.

A picture's time is counted call by call: its part of the calls that encode its texts and the
picture that it goes on from, of as many steps as it does, of decoding, and of what lies between
calls. So neither the pictures that are under way when a measurement ends nor their number counts,
and a picture that skips steps (``--strength``) is compared with one that does.
"""

import argparse
import asyncio
import contextlib
import functools
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from loadtest.bench import loras
from loadtest.bench.encoders import photo_like
from loadtest.drawing import request
from worker.calibration import tables
from worker.coordination.heartbeat import HeartbeatFile
from worker.engine import Costs, Engine, Limits
from worker.engine.queue import Size
from worker.models.base import Sample
from worker.models.loras.folder import StoredLora
from worker.models.memory import memory_of
from worker.models.zimage.pipeline import ZImageStepwise
from worker.types import ChosenLoras, DrawSpec, Lora, Mask, Parameters, Pixels, SourceImage

BAR = 0.95
KINDS = ("text", "image", "mask", "lora")
ONE = "one lora"
"""Alone only: all with the same adapter, where ``lora`` has several."""
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}
_LEAD = 0.2
"""Share of a measurement's calls that come before all clients are under way."""
_MOST_WAIT_S = 3600.0  # nobody is refused
_MOST_BESIDE_S = 120.0
"""A measurement that takes so much longer than it was asked to hangs."""


class Call(NamedTuple):
    """Into the pipeline, for ``pictures``, of which ``adapted`` have adapters; by the clock."""

    name: str
    pictures: int
    adapted: int
    began: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Meter:
    """Writes down each of the pipeline's calls that use the device."""

    def __init__(self, pipeline: ZImageStepwise, clock: Callable[[], float]) -> None:
        self.calls: list[Call] = []
        self._clock = clock
        names = ("encode_image", "start", "step", "finish")
        for name in names:
            setattr(pipeline, name, self._timed(name, getattr(pipeline, name)))

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(of: Any, *more: Any) -> Any:
            each = [of] if isinstance(of, DrawSpec) else of
            specs = [one.spec if isinstance(one, Sample) else one for one in each]
            adapted = sum(bool(spec.parameters.lora) for spec in specs)
            began = self._clock()
            result = call(of, *more)
            self.calls.append(Call(name, len(specs), adapted, began, self._clock()))
            return result

        return timed


@dataclass(frozen=True)
class Times:
    """Milliseconds of one picture: of encoding the one that it goes on from and its text, of each
    step, of decoding, and of what lies between calls, for each step. ``rows``: of a step."""

    image_ms: float
    text_ms: float
    step_ms: float
    decode_ms: float
    beside_ms: float
    rows: float

    @classmethod
    def of(cls, calls: Sequence[Call]) -> "Times":
        """Of one measurement; its beginning is left out."""
        kept = calls[int(len(calls) * _LEAD) :]
        of_name: defaultdict[str, list[Call]] = defaultdict(list)
        for call in kept:
            of_name[call.name].append(call)
        if not of_name["step"] or not of_name["finish"]:
            raise SystemExit("nothing was drawn: measure longer (--seconds)")
        steps = sum(call.pictures for call in of_name["step"])
        inside_s = sum(call.seconds for call in kept)
        return cls(
            image_ms=_ms_each(of_name["encode_image"]),
            text_ms=_ms_each(of_name["start"]),
            step_ms=_ms_each(of_name["step"]),
            decode_ms=_ms_each(of_name["finish"]),
            beside_ms=1000 * (kept[-1].ended - kept[0].began - inside_s) / steps,
            rows=steps / len(of_name["step"]),
        )

    @classmethod
    def median(cls, times: Sequence["Times"]) -> "Times":
        names = [each.name for each in fields(cls)]
        return cls(*(statistics.median(getattr(t, name) for t in times) for name in names))

    def picture_ms(self, steps: float, images: float) -> float:
        """Of one picture that does ``steps`` and, in ``images`` of all cases, goes on from one."""
        each_ms = self.step_ms + self.beside_ms
        return images * self.image_ms + self.text_ms + steps * each_ms + self.decode_ms


def _ms_each(calls: Sequence[Call]) -> float:
    return 1000 * sum(call.seconds for call in calls) / max(1, sum(c.pictures for c in calls))


class Wishes:
    """What clients ask for, by kind. Every prompt is new, and all are of one length."""

    def __init__(self, options: argparse.Namespace, adapters: Sequence[StoredLora]) -> None:
        self._side, self._strength, self._steps = options.side, options.strength, options.steps
        self._adapters = adapters
        self._pixels = [photo_like(self._side, seed) for seed in range(4)]
        self._numbers = itertools.count()

    def steps(self, kind: str) -> int:
        """That a picture of ``kind`` does."""
        return self._parameters(kind, 0).drawn_steps

    def spec(self, kind: str) -> DrawSpec:
        number = next(self._numbers)
        prompt = f"a red boat on a calm lake, {number:06}"
        return DrawSpec(prompt, number, self._parameters(kind, number), self._source(kind, number))

    def _parameters(self, kind: str, number: int) -> Parameters:
        strength = self._strength if kind == "image" else 1.0
        adapters = {"lora": self._adapters, ONE: self._adapters[:1]}.get(kind, ())
        chosen = [Lora(each.name, 1.0, each.sha256) for each in adapters]
        one = chosen[number % len(chosen) :][:1] if chosen else []
        side = self._side
        return Parameters(side, side, self._steps, strength=strength, lora=ChosenLoras.of(one))

    def _source(self, kind: str, number: int) -> SourceImage | None:
        """Each its own, as each request has its own: it is encoded for this one picture."""
        if kind not in ("image", "mask"):
            return None
        pixels: Pixels = self._pixels[number % len(self._pixels)]
        mask = _middle(self._side) if kind == "mask" else None
        return SourceImage(f"{number:064x}", pixels, mask, "mask" if kind == "mask" else "")


def _middle(side: int) -> Mask:
    mask = np.zeros((side, side), np.uint8)
    mask[side // 4 : -side // 4, side // 4 : -side // 4] = 255
    return mask


@dataclass
class Bench:
    engine: Engine
    meter: Meter
    wishes: Wishes
    clients: int

    async def measured(self, kinds: Sequence[str], seconds: float) -> list[Call]:
        """Calls of about ``seconds``, and as many pictures as clients, in which every client asks
        for one of ``kinds`` after the other."""
        self.meter.calls.clear()
        began, drawn = time.monotonic(), 0

        async def client(number: int) -> None:
            nonlocal drawn
            for turn in itertools.count(number):
                await self._drawn(f"person {number}", kinds[turn % len(kinds)])
                drawn += 1
                if time.monotonic() - began >= seconds and drawn >= self.clients:
                    return

        async with asyncio.timeout(seconds + _MOST_BESIDE_S):
            asking = {asyncio.create_task(client(number)) for number in range(self.clients)}
            done, others = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            calls = list(self.meter.calls)
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.gather(*done)
            await self.engine.drained()
        return calls

    async def _drawn(self, key: str, kind: str) -> None:
        ticket = self.engine.submit(request(key, self.wishes.spec(kind)))
        try:
            await ticket.result()
        finally:
            ticket.cancel()


class FullBatches(Costs):
    """As many rows in a step as wait for it, whether that pays or not."""

    def compared(self, size: Size) -> bool:
        return False


@contextlib.asynccontextmanager
async def drawing(
    pipeline: ZImageStepwise, wishes: Wishes, options: argparse.Namespace
) -> AsyncIterator[Bench]:
    """An engine that knows its costs, as after a calibration."""
    memory, size = memory_of(pipeline.info, None), (options.side, options.side)
    known = list(tables.measure(pipeline, memory, [size], options.max_batch, repeats=1))
    costs = tables.costs_of(known, memory, options.max_batch)
    if options.full_batches:
        full = FullBatches(options.max_batch, memory.limit_bytes)
        full.take(costs)
        costs = full
    meter = Meter(pipeline, CLOCKS[options.clock])
    with tempfile.TemporaryDirectory(prefix="zimage-") as folder:
        heartbeat = HeartbeatFile(Path(folder) / "w1.beat")
        limits = Limits(max_batch=options.max_batch, max_queue_wait_s=_MOST_WAIT_S)
        engine = Engine(pipeline, heartbeat, limits, costs)
        engine.start()
        try:
            yield Bench(engine, meter, wishes, options.clients)
        finally:
            await engine.close()


class Report:
    """Tells people and, as JSON lines, programs."""

    def __init__(self, wishes: Wishes, options: argparse.Namespace) -> None:
        self._wishes = wishes
        self._options = options
        self.alone: defaultdict[str, list[Times]] = defaultdict(list)
        self.mixed: list[Times] = []

    def add(self, kind: str, calls: Sequence[Call]) -> None:
        """One measurement: of one kind, or of ``mixed``."""
        times = Times.of(calls)
        (self.mixed if kind == "mixed" else self.alone[kind]).append(times)
        self.note(what=kind, **_rounded(vars(times)), by_batch=list(_by_batch(calls)))

    def note(self, **result: Any) -> None:
        if self._options.out is not None:
            about = {name: getattr(self._options, name) for name in ("model", "side", "fp8")}
            with self._options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(about | result) + "\n")

    def ratio(self, index: int) -> float:
        """Throughput of the mix by that of the same pictures unmixed, in one round."""
        alone_ms = [self._alone_ms(kind, self.alone[kind][index]) for kind in KINDS]
        return statistics.mean(alone_ms) / self._mixed_ms(self.mixed[index])

    def lines(self) -> Iterator[str]:
        """The table: medians of all rounds."""
        yield "| | steps | images/s | image, ms | text | a step | rows | decode | beside |"
        yield "| --- |" + " ---: |" * 8
        alone = {kind: Times.median(times) for kind, times in self.alone.items()}
        for kind, times in alone.items():
            steps, picture_ms = self._wishes.steps(kind), self._alone_ms(kind, times)
            yield _row(kind, steps, picture_ms, times, edits=_goes_on(kind) > 0)
        mixed = Times.median(self.mixed)
        yield _row("mixed", self._mean_steps, self._mixed_ms(mixed), mixed, edits=True)
        yield ""
        text_ms = self._alone_ms("text", alone["text"])
        for kind in ("image", "mask"):
            image_ms = alone[kind].image_ms
            share = f"{image_ms / text_ms:.1%} of a whole drawing from text"
            yield f"{kind}: encoding the picture takes {image_ms:.1f} ms, {share}"
        for kind in [kind for kind in alone if kind != "text"]:
            as_many = alone[kind].picture_ms(self._wishes.steps("text"), _goes_on(kind))
            yield f"{kind}: with as many steps, {text_ms / as_many:.1%} of the images/s of text"

    def verdict(self) -> bool:
        ratios = [self.ratio(index) for index in range(len(self.mixed))]
        found = statistics.median(ratios)
        ok, rounds = found >= BAR, ", ".join(f"{ratio:.1%}" for ratio in ratios)
        print(
            f"{'ok  ' if ok else 'FAIL'} mixed, of the same unmixed: {found:.1%} ({BAR:.0%}); "
            f"by rounds {rounds}"
        )
        self.note(what="ratio", ratio=round(found, 4), rounds=[round(ratio, 4) for ratio in ratios])
        return ok

    @property
    def _mean_steps(self) -> float:
        return statistics.mean(self._wishes.steps(kind) for kind in KINDS)

    def _alone_ms(self, kind: str, times: Times) -> float:
        return times.picture_ms(self._wishes.steps(kind), _goes_on(kind))

    def _mixed_ms(self, times: Times) -> float:
        return times.picture_ms(self._mean_steps, statistics.mean(map(_goes_on, KINDS)))


def _goes_on(kind: str) -> float:
    return float(kind in ("image", "mask"))


def _row(name: str, steps: float, picture_ms: float, times: Times, *, edits: bool) -> str:
    image = f"{times.image_ms:.1f}" if edits else ""
    return (
        f"| {name} | {steps:g} | {1000 / picture_ms:.3f} | {image} | {times.text_ms:.1f} | "
        f"{times.step_ms:.2f} | {times.rows:.2f} | {times.decode_ms:.1f} | {times.beside_ms:.2f} |"
    )


def _by_batch(calls: Sequence[Call]) -> Iterator[dict[str, float]]:
    """Steps by the rows in them and how many of these have adapters."""
    steps = [call for call in calls if call.name == "step"]
    for rows, adapted in sorted({(call.pictures, call.adapted) for call in steps}):
        each = [c.seconds for c in steps if (c.pictures, c.adapted) == (rows, adapted)]
        ms = round(1000 * statistics.median(each), 2)
        yield {"rows": rows, "adapted": adapted, "count": len(each), "ms": ms}


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


async def run(
    pipeline: ZImageStepwise, adapters: Sequence[StoredLora], options: argparse.Namespace
) -> bool:
    wishes = Wishes(options, adapters)
    report = Report(wishes, options)
    turns: dict[str, Sequence[str]] = {kind: (kind,) for kind in KINDS}
    turns |= ({ONE: (ONE,)} if len(adapters) > 1 else {}) | {"mixed": KINDS}
    async with drawing(pipeline, wishes, options) as bench:
        for kinds in turns.values():  # adapters are read, kernels compiled
            await bench.measured(kinds, options.warm_s)
        for index in range(options.rounds):
            for name in list(turns)[:: -1 if index % 2 else 1]:
                report.add(name, await bench.measured(turns[name], options.seconds))
            print(f"round {index + 1}: {report.ratio(index):.1%}", flush=True)
    print("", *report.lines(), "", sep="\n")
    return report.verdict()


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    with loras.loaded(options, options.loras) as (pipeline, adapters):
        options.steps = options.steps or pipeline.info.default_steps
        print(f"{options.model} on {options.device}, {options.side}², fp8 {options.fp8}, ", end="")
        print(f"adapters: {options.loras} of rank {options.rank}\n", flush=True)
        if len(adapters) > 1:
            rows, side = len(adapters), options.side
            found = loras.measured(pipeline, adapters, rows, side, options.step_rounds)
            print(f"{rows} rows, without the engine:\n\n{loras.table(found)}\n", flush=True)
        kept = asyncio.run(run(pipeline, adapters, options))
    return 0 if kept else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loadtest/mixed", description=__doc__)
    loras.add_options(parser)
    add = parser.add_argument
    add("--loras", type=int, choices=range(1, 9), default=4, help="different ones [default: 4]")
    add("--steps", type=int, default=0, help="of the schedule [default: the model's own]")
    add("--strength", type=float, default=0.6, help="of image [default: 0.6, the API's]")
    add("--clients", type=int, default=8, help="who always wait for a picture [default: 8]")
    add("--max-batch", type=int, default=4)
    add("--full-batches", action="store_true", help="whether they pay here or not")
    add("--seconds", type=float, default=20.0, help="of each measurement [default: 20]")
    add("--rounds", type=int, default=3, help="of all measurements [default: 3]")
    add("--warm-s", type=float, default=5.0, help="of each kind before them [default: 5]")
    add("--step-rounds", type=int, default=7, help="of steps without the engine [default: 7]")
    add("--clock", choices=CLOCKS, default="wall", help="cpu: of the thread that draws; others "
        "on the machine disturb it less, and it counts no waiting")  # fmt: skip
    add("--out", type=Path, help="JSON lines, appended")
    return parser


if __name__ == "__main__":
    sys.exit(main())
