"""What calls cost on this device: measured once, stored, and read by every start.

``<var_dir>/calibration/<digest>.json`` holds the costs and what they were measured on. The digest
covers all that changes them: device, driver, model, dtype, versions of the libraries and of the
code that draws, the limit of its memory, and on a CPU threads and cores.

``tables`` beside this module holds such files of cards that were measured: a first start on one of
them serves by these, whatever its versions, and measures again when it is idle.
"""

import hashlib
import itertools
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from worker import log, whole_file
from worker.calibration.timings import Measured
from worker.engine.costs import KINDS, Costs
from worker.engine.queue import Size
from worker.models.base import OutOfMemory, Pipeline
from worker.models.memory import Memory
from worker.models.versions import versions
from worker.settings import Settings
from worker.types import DrawSpec, Parameters

PROMPT = "a small red boat on a calm lake at dawn, with mountains in the mist behind it"
REPEATS = 3
_QUICK_S = 6.0
"""A start tries one picture more while a batch is drawn in less."""
TABLES = Path(__file__).with_name("shipped")
_SAME = ("device", "dtype", "stepwise", "levers", "architecture")
"""What a table of ``TABLES`` must have been measured on to be a first idea here."""
_numbers = itertools.count()  # of prompts in this process


def measured_on(settings: Settings, pipeline: Pipeline, memory: Memory) -> dict[str, Any]:
    """Everything that changes the costs, as JSON's types."""
    return {
        "model": settings.model,
        "dtype": pipeline.info.dtype,
        "stepwise": pipeline.info.stepwise,
        "levers": dict(pipeline.info.optimisations),
        "architecture": pipeline.info.architecture,
        "device": _device(settings, memory),
        "driver": memory.driver,
        "vram_limit_gib": settings.vram_limit_gib,
        **(_cores(settings) if pipeline.info.device == "cpu" else {}),
        **versions(type(pipeline).__module__),
    }


def _device(settings: Settings, memory: Memory) -> str:
    name = memory.device_name or platform.processor() or platform.machine()
    count = len(settings.devices)
    return name if count == 1 else f"{count} × {name}"


def _cores(settings: Settings) -> dict[str, Any]:
    # Of no matter to a card: one that was measured alone costs the same beside others.
    return {"threads": settings.threads, "cores": os.cpu_count()}


def path_of(settings: Settings, on: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(on, sort_keys=True).encode()).hexdigest()[:16]
    return settings.var_dir / "calibration" / f"{digest}.json"


def load(settings: Settings, pipeline: Pipeline, memory: Memory) -> Costs | None:
    """The costs of this very device and model; None where they were not measured."""
    path = path_of(settings, measured_on(settings, pipeline, memory))
    try:
        data = json.loads(path.read_bytes())
        return Costs.load(data["costs"], settings.max_batch, memory.limit_bytes)
    except (OSError, KeyError, ValueError, TypeError):
        return None


def outdated(settings: Settings, pipeline: Pipeline, memory: Memory) -> list[str]:
    """What is other here than where the last table of this model and device was measured; empty
    where there is none."""
    on = measured_on(settings, pipeline, memory)
    folder = path_of(settings, on).parent
    for path in sorted(folder.glob("*.json"), key=_changed_at, reverse=True):
        try:
            was = json.loads(path.read_bytes())["measured_on"]
            if all(was[name] == on[name] for name in ("model", "device")):
                return sorted(name for name in {*was, *on} if was.get(name) != on.get(name))
        except (OSError, KeyError, ValueError, TypeError, AttributeError):
            continue
    return []


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # just replaced
        return 0.0


def save(path: Path, on: dict[str, Any], measured: Sequence[Measured], costs: Costs) -> None:
    """Write the table whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "measured_on": on,
        "rows": [vars(each) for each in measured],
        "costs": costs.dump(),
    }
    whole_file.replace(path, json.dumps(content, indent=1))


def measure(
    pipeline: Pipeline,
    memory: Memory,
    sizes: Sequence[Size],
    max_batch: int,
    repeats: int = REPEATS,
) -> Iterator[Measured]:
    """Time and memory of every number of rows at every size, smallest first; a size ends where
    the memory does. The first call of each shape, which may compile, is not counted, unless it is
    the only one."""
    for size in sorted(sizes, key=lambda each: each[0] * each[1]):
        for rows in range(1, max_batch + 1):
            try:
                yield _measure(pipeline, memory, size, rows, repeats)
            except OutOfMemory:
                break


def measure_largest(settings: Settings, pipeline: Pipeline, memory: Memory) -> Iterator[Measured]:
    """One picture, once: for its peak, which is not in proportion where it is decoded in parts."""
    largest = largest_size(pipeline, settings.max_pixels)
    yield from measure(pipeline, memory, [largest], max_batch=1, repeats=0)


def costs_of(measured: Sequence[Measured], memory: Memory, max_batch: int) -> Costs:
    """The engine's table of ``measured``."""
    costs = Costs(max_batch, memory.limit_bytes)
    _record(costs, measured, memory)
    return costs


def _record(costs: Costs, measured: Sequence[Measured], memory: Memory) -> None:
    for each in measured:
        for kind in KINDS:
            costs.record(kind, each.size, each.rows, getattr(each, f"{kind}_s"))
        if each.peak_bytes is not None:
            costs.record_peak(each.size, each.rows, each.peak_bytes, memory.resident_bytes)


def shipped(settings: Settings, pipeline: Pipeline, memory: Memory) -> Costs | None:
    """The costs of such a card with such a model, as they were measured elsewhere."""
    on = measured_on(settings, pipeline, memory)
    for path in sorted(TABLES.glob("*.json")):
        table = json.loads(path.read_bytes())
        if all(table["measured_on"].get(key) == on[key] for key in _SAME):
            costs = Costs.load(table["costs"], settings.max_batch, memory.limit_bytes)
            costs.rebase(memory.resident_bytes)
            return costs
    return None


def short(settings: Settings, pipeline: Pipeline, memory: Memory) -> Costs:
    """A first idea where there is no table, kept for the next start: all numbers of rows of half
    the model's own size; of the whole one and two, and more where that is quick."""
    return _keep(settings, pipeline, memory, list(_first(settings, pipeline, memory)))


def renewed(
    settings: Settings, pipeline: Pipeline, memory: Memory, learn: Callable[[Costs], None]
) -> Iterator[Measured]:
    """As ``short``, one measurement for each ``next``; at the end ``learn`` is told."""
    measured = []
    for each in _first(settings, pipeline, memory):
        measured.append(each)
        yield each
    learn(_keep(settings, pipeline, memory, measured))
    log.event("costs measured again", shapes=len(measured))


def _first(settings: Settings, pipeline: Pipeline, memory: Memory) -> Iterator[Measured]:
    info = pipeline.info
    yield from _quick(pipeline, memory, info.default_size, settings.max_batch)
    half = tuple(side // 2 // info.side_multiple * info.side_multiple for side in info.default_size)
    if min(half) >= info.min_side:
        sizes = [(half[0], half[1])]
        yield from measure(pipeline, memory, sizes, settings.max_batch, repeats=1)
    if largest_size(pipeline, settings.max_pixels) != info.default_size:
        yield from measure_largest(settings, pipeline, memory)


def complete(settings: Settings, pipeline: Pipeline, memory: Memory, costs: Costs) -> None:
    """Measure the largest size that may be asked for where ``costs``, which were loaded, do not
    know it: they were measured when it was another. Kept for the next start."""
    if costs.timed(largest_size(pipeline, settings.max_pixels)):
        return
    measured = list(measure_largest(settings, pipeline, memory))
    costs.rebase(memory.resident_bytes)
    _record(costs, measured, memory)
    _save(settings, pipeline, memory, [*_rows(settings, pipeline, memory), *measured], costs)
    log.event("largest size measured", shapes=len(measured))


def _rows(settings: Settings, pipeline: Pipeline, memory: Memory) -> list[Measured]:
    """Of the table that is there."""
    path = path_of(settings, measured_on(settings, pipeline, memory))
    try:
        return [Measured(**row) for row in json.loads(path.read_bytes())["rows"]]
    except (OSError, KeyError, ValueError, TypeError):
        return []


def _keep(
    settings: Settings, pipeline: Pipeline, memory: Memory, measured: Sequence[Measured]
) -> Costs:
    costs = costs_of(measured, memory, settings.max_batch)
    _save(settings, pipeline, memory, measured, costs)
    return costs


def _save(
    settings: Settings,
    pipeline: Pipeline,
    memory: Memory,
    measured: Sequence[Measured],
    costs: Costs,
) -> None:
    on = measured_on(settings, pipeline, memory)
    try:
        save(path_of(settings, on), on, measured, costs)
    except OSError as error:  # a full disk: then the next start measures again
        log.failure("costs cannot be kept", error)


def _quick(pipeline: Pipeline, memory: Memory, size: Size, max_batch: int) -> Iterator[Measured]:
    for each in measure(pipeline, memory, [size], max_batch, repeats=1):
        yield each
        if each.rows >= 2 and each.rows * each.picture_s(pipeline.info.default_steps) > _QUICK_S:
            break


def largest_size(pipeline: Pipeline, max_pixels: int) -> Size:
    """The largest square, or the model's own size where that is larger."""
    multiple = pipeline.info.side_multiple
    side = math.isqrt(max_pixels) // multiple * multiple
    width, height = pipeline.info.default_size
    return (side, side) if side * side > width * height else (width, height)


def default_sizes(pipeline: Pipeline, max_pixels: int) -> list[Size]:
    """Squares of half, the whole and twice the model's side, as far as they are allowed."""
    info, found = pipeline.info, []
    for factor in (0.25, 0.5, 1.0, 2.0):
        side = int(info.default_size[0] * factor) // info.side_multiple * info.side_multiple
        if side >= info.min_side and side * side <= max_pixels:
            found.append((side, side))
    return found or [info.default_size]


def _measure(pipeline: Pipeline, memory: Memory, size: Size, rows: int, repeats: int) -> Measured:
    steps = pipeline.info.default_steps
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    memory.reset_peak()
    for turn in range(repeats + 1):
        # New text each time, at other sizes too: that of a known prompt is remembered.
        prompts = [f"{PROMPT} {next(_numbers)}" for _ in range(rows)]
        how = Parameters(*size, steps)
        specs = [DrawSpec(prompt, seed, how) for seed, prompt in enumerate(prompts)]
        clock = _Clock()
        samples = pipeline.start(specs)
        encode_s = clock.lap()
        for _ in range(2 if pipeline.info.stepwise else 1):
            clock.lap()
            pipeline.step(samples, lambda done: True)
            step_s = clock.lap()
        clock.lap()
        pipeline.finish(samples)  # decodes what is there, finished or not
        if turn or not repeats:
            per_step_s = step_s if pipeline.info.stepwise else step_s / steps
            for kind, seconds in zip(KINDS, (encode_s, per_step_s, clock.lap()), strict=True):
                times[kind].append(seconds)
    median = {kind: sorted(each)[len(each) // 2] for kind, each in times.items()}
    return Measured(
        size, rows, median["encode"], median["step"], median["decode"], memory.peak_bytes()
    )


class _Clock:
    def __init__(self) -> None:
        self._at = time.monotonic()

    def lap(self) -> float:
        before, self._at = self._at, time.monotonic()
        return self._at - before
