"""What do different adapters in a batch cost, and what does drawing them group by group?

A step of some rows: without adapters, all with one, each with another, and one row after the other
as if every adapter waited for its turn. The last against the third is what sharing steps is worth.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from worker.models.base import Sample
from worker.models.loading.sources import load
from worker.models.loras.adding import add
from worker.models.loras.conversion import layers_of
from worker.models.loras.folder import StoredLora
from worker.models.zimage.pipeline import ZImageStepwise
from worker.settings import Settings
from worker.types import ChosenLoras, DrawSpec, Lora, Parameters

_BLOCKS = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
WARM_UPS = 2


def random_loras(pipeline: ZImageStepwise, folder: Path, count: int, rank: int) -> list[StoredLora]:
    """``count`` adapters of attention and feed-forward in every layer."""
    layers = layers_of(pipeline._pipeline.transformer)
    names = [n for n in layers if n.startswith("layers.") and (n.endswith(_BLOCKS) or ".w" in n)]
    found = []
    for number in range(count):
        state = {}
        for name in names:
            inputs, outputs = layers[name]
            state[f"{name}.lora_A.weight"] = torch.randn(rank, inputs).bfloat16() / inputs**0.5
            state[f"{name}.lora_B.weight"] = torch.randn(outputs, rank).bfloat16() * 0.01
        file = folder / f"made-{number}.safetensors"
        save_file(state, file)
        found.append(add(file, f"made-{number}", folder / "loras", layers))
        file.unlink()
    return found


def step_s(pipeline: ZImageStepwise, groups: Sequence[Sequence[DrawSpec]], rounds: int) -> float:
    """Seconds, the median of ``rounds``, of one step of each of ``groups``."""
    samples: list[list[Sample]] = [pipeline.start(specs) for specs in groups]
    times = []
    for _ in range(WARM_UPS + rounds):
        began = time.perf_counter()
        for each in samples:
            pipeline.step(each, lambda _: True)
        times.append(time.perf_counter() - began)
    return statistics.median(times[WARM_UPS:])


def measured(
    pipeline: ZImageStepwise, loras: Sequence[StoredLora], rows: int, side: int, rounds: int
) -> dict[str, float]:
    """Seconds of a step by how the rows are drawn."""

    def specs(chosen: Sequence[StoredLora | None]) -> list[DrawSpec]:
        found = []
        for seed, lora in enumerate(chosen):
            asked = [] if lora is None else [Lora(lora.name, 1.0, lora.sha256)]
            how = Parameters(side, side, WARM_UPS + rounds, lora=ChosenLoras.of(asked))
            found.append(DrawSpec("a red circle", seed, how))
        return found

    different = specs(loras[:rows])
    ways: dict[str, list[list[DrawSpec]]] = {
        "no adapter": [specs([None] * rows)],
        "one adapter": [specs([loras[0]] * rows)],
        "half with one": [specs([loras[0] if n % 2 else None for n in range(rows)])],
        "all different": [different],
        "one after the other": [[each] for each in different],
    }
    return {name: step_s(pipeline, groups, rounds) for name, groups in ways.items()}


@contextlib.contextmanager
def loaded(options: Any, count: int) -> Iterator[tuple[ZImageStepwise, list[StoredLora]]]:
    """The pipeline that ``options`` name and ``count`` adapters of it, which end with it."""
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(
            model=options.model,
            device=options.device,
            threads=options.threads,
            fp8=options.fp8,
            max_pixels=options.side**2,
            loras={"folder": f"{home}/loras", "device_gib": options.device_gib},
        )
        pipeline = load(settings)
        if not isinstance(pipeline, ZImageStepwise):
            raise SystemExit(f"{options.model} is no Z-Image: name one")
        yield pipeline, random_loras(pipeline, Path(home), count, options.rank)


def table(found: Mapping[str, float]) -> str:
    """Of what ``measured`` gave."""
    plain = found["no adapter"]
    lines = ["| a step | ms | of no adapter |", "| --- | ---: | ---: |"]
    for name, seconds in found.items():
        lines.append(f"| {name} | {seconds * 1000:.1f} | {seconds / plain:.2f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    with loaded(options, options.rows) as (pipeline, loras):
        found = measured(pipeline, loras, options.rows, options.side, options.rounds)
    print(f"{options.model}, {options.rows} × {options.side}², rank {options.rank}\n")
    print(table(found))
    ratio = found["one after the other"] / found["all different"]
    print(
        f"\nTogether, {options.rows} adapters are {ratio:.2f} times as fast as one after the other."
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loadtest/loras", description=__doc__)
    add_options(parser)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``loaded`` needs."""
    parser.add_argument("--model", default="tiny", help="or random:z-image-turbo [default: tiny]")
    parser.add_argument("--device", default="cpu", help='"cpu" or "cuda:0" [default: cpu]')
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fp8", choices=("off", "transformer", "all"), default="off")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--device-gib", type=float, default=4.0)


if __name__ == "__main__":
    sys.exit(main())
