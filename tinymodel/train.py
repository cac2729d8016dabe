"""Makes the tiny model from nothing but this code: `python -m tinymodel.train --help`.

First the autoencoder, then transformer and text encoder, then what guidance adds. Each stage is
bounded by minutes and goes on from its checkpoint in the run folder when started again. The result
lies in RUN/weights as a diffusers folder.
"""

import argparse
import logging
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from tinymodel import data, train_transformer, train_vae
from tinymodel.graphs import stream
from tinymodel.schedule import Schedule

_VAE_PIXELS_PER_TOKEN = 10  # of the batch
_GUIDE_RATE = 0.4  # of the rate

_log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    """Trains both stages, or what of them is left to do."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    disable_progress_bar()
    options.run.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    samples = _samples(options)
    device = torch.device(options.device)
    with stream(device):
        _train(options, samples, device)


def _train(options: argparse.Namespace, samples: list[data.Samples], device: torch.device) -> None:
    tokens = options.tokens_per_batch
    pixels = tokens * _VAE_PIXELS_PER_TOKEN
    vae_schedule = Schedule(options.vae_minutes, options.max_steps)
    vae = train_vae.train(samples, vae_schedule, options.run, pixels, device, options.start)
    for side in (128, 256):
        right = train_vae.round_trips(vae, side)
        _log.info("round trips at %d pixels: %d of 64 right", side, right)
    started = time.monotonic()
    pools = train_transformer.fill(vae, samples, tokens, device)
    count, took_s = sum(len(pool.latents) for pool in pools), time.monotonic() - started
    _log.info("%d pictures of %d sizes encoded in %.0f s", count, len(pools), took_s)
    schedule = Schedule(options.minutes, options.max_steps)
    trainer = train_transformer.Trainer(vae, schedule, options.run, device, options.rate)
    if options.start and not schedule.step:
        trainer.start_from(options.start)
    if options.compile:
        trainer.compile()
    trainer.run(pools)
    _log.info("done after %d steps: %s", schedule.step, trainer.preview())
    if options.guide_minutes:
        _guide(options, pools, trainer)


def _guide(
    options: argparse.Namespace,
    pools: list[train_transformer.Pool],
    trained: train_transformer.Trainer,
) -> None:
    schedule = Schedule(options.guide_minutes, options.max_steps)
    trainer = train_transformer.Trainer(
        trained.vae,
        schedule,
        options.run,
        trained.device,
        options.rate * _GUIDE_RATE,
        teacher=trained.average,
        name="guided",
    )
    if options.compile:
        trainer.compile()
    trainer.run(pools)
    _log.info("guided after %d steps: %s", schedule.step, trainer.preview())


def _samples(options: argparse.Namespace) -> list[data.Samples]:
    weights = {
        size: weight * train_transformer.batch_size(*size, options.tokens_per_batch)
        for size, weight in data.size_weights().items()
    }
    total = sum(weights.values())
    least = min(1000, options.samples // 20)
    counts = {s: max(least, round(options.samples * w / total)) for s, w in weights.items()}
    # Forked before CUDA starts: it does not survive a fork.
    with ProcessPoolExecutor(options.processes, mp_context=get_context("fork")) as executor:
        return data.sample_many(executor, counts, options.seed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tinymodel.train", description=__doc__)
    add = parser.add_argument
    add("--run", type=Path, default=Path("var/tinymodel"), help="checkpoints and result")
    add("--start", type=Path, help="a diffusers folder to go on from, such as tinymodel/weights")
    add("--minutes", type=float, default=12.5, help="transformer and text encoder")
    add("--guide-minutes", type=float, default=3.0, help="learning what guidance draws; 0 skips it")
    add("--vae-minutes", type=float, default=3.2, help="autoencoder; of --start, its decoder")
    add("--max-steps", type=int, help="end each stage after so many steps, however fast")
    add("--rate", type=float, default=1e-3, help="the transformer's highest learning rate")
    add("--samples", type=int, default=120_000, help="pictures to draw")
    add("--tokens-per-batch", type=int, default=49_152, help="image and prompt tokens a step")
    add("--seed", type=int, default=0)
    add("--processes", type=int, default=max(1, (os.cpu_count() or 1) - 1))
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--compile", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available())
    return parser


if __name__ == "__main__":
    main()
