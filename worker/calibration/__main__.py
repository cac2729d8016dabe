"""``python -m worker.calibration``: measure what drawing costs here, with the worker's settings.

Prints one JSON line for each measurement and, at the end, the path of the table. The device should
be free: a worker that draws at the same time doubles the figures.
"""

import itertools
import json
import os
import sys

from pydantic import Field, ValidationError
from pydantic_settings import CliApp, SettingsError

from worker import exits
from worker.calibration import tables as calibration
from worker.coordination import gpu_lock
from worker.models.loading.sources import ModelLoadError, load
from worker.models.memory import memory_of
from worker.settings import Settings, problems


class Options(Settings):
    sizes: str = Field("", pattern=r"^(\d+x\d+(,\d+x\d+)*)?$")
    """``WIDTHxHEIGHT,…``; empty: the model's own side, its half, quarter and double."""
    repeats: int = Field(calibration.REPEATS, ge=1)


def main() -> int:
    """Measure and store; returns the exit code."""
    try:
        options = CliApp.run(Options)
    except ValidationError as error:
        sys.stderr.writelines(f"calibrate: {line}\n" for line in problems(error))
        return exits.BAD_SETTINGS
    except SettingsError as error:
        sys.stderr.write(f"calibrate: {error}\n")
        return exits.BAD_SETTINGS
    gpu_lock.pin(options.device)
    try:
        calibrate(options)
    except (ModelLoadError, gpu_lock.CardBusy) as error:
        sys.stderr.write(f"calibrate: {error}\n")
        return exits.MODEL_FAILED
    return 0


def calibrate(options: Options) -> None:
    """Load the model, measure, store, and say so line by line."""
    options.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with gpu_lock.card(options):
        pipeline = load(options)
    memory = memory_of(pipeline.info, options.vram_limit_gib)
    sizes = _sizes(options.sizes) or calibration.default_sizes(pipeline, options.max_pixels)
    measured = []
    work = [calibration.measure(pipeline, memory, sizes, options.max_batch, options.repeats)]
    largest = calibration.largest_size(pipeline, options.max_pixels)
    if pipeline.info.device != "cpu" and largest not in sizes:
        work.append(calibration.measure_largest(options, pipeline, memory))
    for each in itertools.chain(*work):
        measured.append(each)
        _say(vars(each))
    costs = calibration.costs_of(measured, memory, options.max_batch)
    on = calibration.measured_on(options, pipeline, memory)
    path = calibration.path_of(options, on)
    calibration.save(path, on, measured, costs)
    caps = {f"{w}x{h}": costs.batch_cap((w, h)) for w, h in sizes}
    _say({"path": str(path.absolute()), "caps": caps, "steps": pipeline.info.default_steps})


def _sizes(text: str) -> list[tuple[int, int]]:
    pairs = [each.split("x") for each in filter(None, text.split(","))]
    return [(int(width), int(height)) for width, height in pairs]


def _say(content: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    code = main()
    os._exit(code)  # as a worker ends: no library's thread may keep it
