"""Training data, made from nothing: scenes, their pictures' plans and their captions as tokens."""

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from functools import cache
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinymodel import tokenizer
from tinymodel.captions import caption, is_held_out, random_scene
from tinymodel.shapes import Plan, Scene, paint, plan

SHORT, LONG = 32, 64  # tokens of a caption, padded
PHRASINGS = 4
_CHUNK = 1000

# Width, height and how often it is drawn; the rest are sizes by chance.
_COMMON_SIZES = {
    (256, 256): 20.0, (128, 128): 10.0, (512, 512): 6.0, (192, 192): 7.0, (384, 384): 5.0,
    (384, 256): 5.0, (256, 384): 5.0, (512, 256): 4.0, (256, 512): 4.0, (256, 128): 3.0,
    (128, 256): 3.0, (512, 384): 2.0, (384, 512): 2.0, (320, 320): 3.0, (160, 160): 3.0,
    (208, 208): 2.0, (512, 128): 1.0, (128, 512): 1.0, (448, 448): 1.0,
}  # fmt: skip
_CHANCE_SIZES, _CHANCE_WEIGHT = 12, 1.0


@dataclass(frozen=True)
class Samples:
    """N pictures of one size, in numpy: plans, and captions as token ids padded with 0.

    short (N, PHRASINGS, SHORT) and long (N, LONG).
    """

    width: int
    height: int
    plan: Plan
    short: Any
    long: Any


@cache
def size_weights() -> dict[tuple[int, int], float]:
    """Width and height of all sizes trained on, with their share of the steps."""
    rng = Random(0)
    weights = dict(_COMMON_SIZES)
    while len(weights) < len(_COMMON_SIZES) + _CHANCE_SIZES:
        size = (16 * rng.randint(8, 32), 16 * rng.randint(8, 32))
        weights.setdefault(size, _CHANCE_WEIGHT)
    total = sum(weights.values())
    return {size: weight / total for size, weight in weights.items()}


def training_scene(rng: Random) -> Scene:
    """A scene that is not held out for evaluation."""
    while is_held_out(scene := random_scene(rng)):
        pass
    return scene


def held_out_prompts(count: int, seed: int = 0) -> list[tuple[str, Scene]]:
    """Prompts of scenes that training never saw, English and Chinese in turn."""
    rng = Random(seed)
    prompts: list[tuple[str, Scene]] = []
    while len(prompts) < count:
        if is_held_out(scene := random_scene(rng)):
            prompts.append((caption(scene, "zh" if len(prompts) % 2 else "en", rng), scene))
    return prompts


def sample(count: int, width: int, height: int, seed: int) -> Samples:
    """Scenes with plans and captions, the same for the same seed."""
    rng = Random(f"{seed} {width} {height}")
    words = _words()
    scenes = [training_scene(rng) for _ in range(count)]
    short = np.zeros((count, PHRASINGS, SHORT), np.int16)
    long = np.zeros((count, LONG), np.int16)
    for row, scene in enumerate(scenes):
        phrases = [caption(scene, "en" if rng.random() < 0.5 else "zh", rng) for _ in range(8)]
        tokens = [ids for ids in tokenizer.encode(words, phrases) if len(ids) <= SHORT]
        for at, ids in enumerate(tokens[:PHRASINGS]):
            short[row, at, : len(ids)] = ids
        long[row] = _joined(tokens)
    return Samples(width, height, plan(scenes, width, height, rng), short, long)


def sample_many(executor: Executor, counts: dict[tuple[int, int], int], seed: int) -> list[Samples]:
    """Samples of several sizes, made by many processes."""
    jobs = [
        (min(_CHUNK, count - start), width, height, seed + start)
        for (width, height), count in counts.items()
        for start in range(0, count, _CHUNK)
    ]
    grouped: dict[tuple[int, int], list[Samples]] = {}
    for chunk in executor.map(_sample_job, jobs):
        grouped.setdefault((chunk.width, chunk.height), []).append(chunk)
    return [_merged(chunks) for chunks in grouped.values()]


def pictures(samples: Samples, rows: slice, device: torch.device) -> Tensor:
    """Draws some of the samples on a device: (B, 3, height, width) in -1…1."""
    chosen = Plan(
        **{
            f.name: torch.from_numpy(getattr(samples.plan, f.name)[rows]).to(device)
            for f in fields(Plan)
        }
    )
    drawn: Tensor = paint(torch, chosen, samples.width, samples.height)
    return (drawn.permute(0, 3, 1, 2) * 2 - 1).contiguous()


def batches(samples: Samples, pixels: int) -> Iterator[slice]:
    """Slices over all samples of at most so many pixels each."""
    size = max(1, pixels // (samples.width * samples.height))
    for start in range(0, len(samples.short), size):
        yield slice(start, start + size)


def _joined(tokens: list[list[int]]) -> Any:
    """Phrasings one after another in one prompt, more than SHORT tokens long."""
    comma = _words().convert_tokens_to_ids(",")
    out = list(tokens[0][:-1])
    for ids in tokens[1:] + tokens:
        if len(out) >= SHORT or len(out) + len(ids) > LONG:
            break
        out += [comma, *ids[1:-1]]
    row = np.zeros(LONG, np.int16)
    row[: len(out) + 1] = [*out, tokens[0][-1]]
    return row


@cache
def _words() -> Any:
    return tokenizer.build()


def _sample_job(job: tuple[int, int, int, int]) -> Samples:
    return sample(*job)


def _merged(chunks: list[Samples]) -> Samples:
    whole = {
        f.name: np.concatenate([getattr(c.plan, f.name) for c in chunks]) for f in fields(Plan)
    }
    return Samples(
        chunks[0].width,
        chunks[0].height,
        Plan(**whole),
        np.concatenate([c.short for c in chunks]),
        np.concatenate([c.long for c in chunks]),
    )
