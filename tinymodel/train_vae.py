"""The first stage: an autoencoder for drawn pictures.

After most of the time its latents are normalised per channel, inside the encoder's last and the
decoder's first convolution, and the encoder is frozen; the decoder then learns to live with it (its
padding is now off by a constant at the picture's edge) and with the transformer's small errors.
"""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from tinymodel import build, configs
from tinymodel.batched import decode
from tinymodel.data import Samples, batches, held_out_prompts, pictures, size_weights
from tinymodel.graphs import Graphs
from tinymodel.judge import judge
from tinymodel.schedule import Schedule, cosine
from tinymodel.shapes import draw

_log = logging.getLogger(__name__)

_FREEZE_AT = 0.7  # of the time
_RATES = (1e-3, 5e-4)  # before and after the freeze
_NOISE = 0.1  # on latents, before they are normalised
_NOISE_AFTER = 0.05  # of a normalised latent
_SPREAD_PENALTY = 1e-5
_MAX_PIXELS = 256 * 256  # of a picture; larger ones are no harder
_MAX_PICTURES = 16_384  # of a size
_WARM_UP_STEPS = 100
_SAVE_EVERY_S = 60.0
_WAIT_EVERY_STEPS = 50


@dataclass
class _Stage:
    vae: AutoencoderKL
    schedule: Schedule
    images: list[Tensor]  # of each size, (N, 3, H, W) in 0…255
    pixels: int
    error: Tensor
    frozen: bool = False
    frozen_at: float = 0.0  # progress


def train(
    samples: list[Samples],
    schedule: Schedule,
    run: Path,
    pixels: int,
    device: torch.device,
    start: Path | None = None,
) -> AutoencoderKL:
    """Trains or goes on training, with so many pixels a step; the result lies in run/vae.pt.

    Of a VAE from the diffusers folder `start` only the decoder is trained.
    """
    error = torch.zeros((), device=device)
    stage = _Stage(configs.vae().to(device), schedule, _drawn(samples, device), pixels, error)
    path = run / "vae.pt"
    if path.exists():
        _load(stage, path, device)
    elif start:
        stage.vae = AutoencoderKL.from_pretrained(start, subfolder="vae").float().to(device)
        _freeze_encoder(stage)
    while not schedule.done and not stage.frozen:
        _run(stage, path, until=_FREEZE_AT)
        if schedule.progress >= _FREEZE_AT:
            _freeze(stage)
    if not stage.frozen:
        _freeze(stage)
    _run(stage, path, until=1.0)
    _save(stage, path)
    return stage.vae.eval().requires_grad_(False)


def _run(stage: _Stage, path: Path, until: float) -> None:
    schedule, device = stage.schedule, stage.error.device
    graphs, optimiser = Graphs(device), _optimiser(stage)
    rng, saved_at = Random(schedule.step), schedule.elapsed_s
    while schedule.progress < until:
        for group in optimiser.param_groups:
            group["lr"].fill_(_rate(stage))
        images = _pool(stage, rng)
        graphs.run(id(images), partial(_step, stage, optimiser, images))
        if schedule.step % _WAIT_EVERY_STEPS == 0:
            stage.error.item()  # the clock must not run ahead of the device
        schedule.tick()
        if schedule.step % 500 == 0:
            error = stage.error.item()
            _log.info("step %d at %.0f s: L1 %.4f", schedule.step, schedule.elapsed_s, error)
        if schedule.elapsed_s - saved_at > _SAVE_EVERY_S:
            _save(stage, path)
            saved_at = schedule.elapsed_s


@torch.no_grad()
def round_trips(vae: AutoencoderKL, side: int, count: int = 64) -> int:
    """How many of `count` drawn pictures still show their scenes after encoding and decoding."""
    scenes = [scene for _, scene in held_out_prompts(count)]
    drawn = [draw(scene, side, side, seed=number) for number, scene in enumerate(scenes)]
    pixels = np.stack([np.asarray(image) for image in drawn]).transpose(0, 3, 1, 2)
    device = next(vae.parameters()).device
    latents = encode(vae, torch.from_numpy(pixels).to(device).float() / 127.5 - 1)
    again = decode(vae, latents)
    return sum(
        judge(image, scene).ok for image, scene in zip(build.to_images(again), scenes, strict=True)
    )


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in -1…1 → latents as the transformer sees them, mean 0, deviation 1."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
        latents: Tensor = vae.encode(images).latent_dist.mode().float()
    return (latents - configs.LATENT_MEAN) * configs.LATENT_SCALE


def _drawn(samples: list[Samples], device: torch.device) -> list[Tensor]:
    """Everything small enough, drawn: a list of (N, 3, H, W) bytes."""
    small = [one for one in samples if one.width * one.height <= _MAX_PIXELS]
    return [
        torch.cat(
            [
                ((pictures(one, rows, device) + 1) * 127.5).round().byte()
                for rows in batches(one, pixels=1 << 22)
                if rows.start < _MAX_PICTURES
            ]
        )
        for one in small
    ]


def _step(stage: _Stage, optimiser: torch.optim.Optimizer, images: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss, error = _loss(stage, _some(images, stage.pixels))
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_([p for p in stage.vae.parameters() if p.requires_grad], 1.0)
    optimiser.step()
    stage.error.lerp_(error, 0.02)


def _loss(stage: _Stage, images: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
        latents = stage.vae.encode(images).latent_dist.mean
        most = _NOISE_AFTER / configs.LATENT_SCALE if stage.frozen else _NOISE
        noise = most * torch.rand(len(images), 1, 1, 1, device=images.device)
        decoded = stage.vae.decode(latents + noise * torch.randn_like(latents)).sample
    decoded = decoded.float()
    error = F.l1_loss(decoded, images)
    spread = 0.0 if stage.frozen else _SPREAD_PENALTY * latents.float().square().mean()
    return error + F.mse_loss(decoded, images) + spread, error.detach()


def _pool(stage: _Stage, rng: Random) -> Tensor:
    """All pictures of a size, small ones as often as the transformer will meet them."""
    weights = [size_weights()[images.shape[3], images.shape[2]] for images in stage.images]
    return rng.choices(stage.images, weights)[0]


def _some(images: Tensor, pixels: int) -> Tensor:
    """Pictures by chance, (B, 3, H, W) in -1…1, with so many pixels together."""
    count = max(1, pixels // (images.shape[2] * images.shape[3]))
    rows = torch.randint(len(images), (count,), device=images.device)
    return images[rows].float() / 127.5 - 1


@torch.no_grad()
def _freeze(stage: _Stage) -> None:
    rng, seen = Random(0), []
    for _ in range(100):
        images = _some(_pool(stage, rng), stage.pixels)
        latents = stage.vae.encode(images).latent_dist.mode()
        seen.append(latents.transpose(0, 1).flatten(1))
    flat = torch.cat(seen, 1).double()
    normalise(stage.vae, flat.mean(1).float(), flat.std(1).float())
    _freeze_encoder(stage)


def _freeze_encoder(stage: _Stage) -> None:
    stage.vae.encoder.requires_grad_(False)
    stage.frozen = True
    stage.frozen_at = stage.schedule.progress


@torch.no_grad()
def normalise(vae: AutoencoderKL, mean: Tensor, deviation: Tensor) -> None:
    """Gives latents of the measured mean and deviation per channel the ones that configs name.

    The variance that the encoder also returns is never used; it is set to almost nothing.
    """
    channels = configs.LATENT_CHANNELS
    factor = 1 / (deviation * configs.LATENT_SCALE)
    offset = configs.LATENT_MEAN - mean * factor
    last, first = vae.encoder.conv_out, vae.decoder.conv_in
    last.weight[:channels] *= factor[:, None, None, None]
    last.bias[:channels] = last.bias[:channels] * factor + offset
    last.weight[channels:] = 0
    last.bias[channels:] = -20
    first.weight /= factor[None, :, None, None]
    first.bias -= (first.weight.sum((2, 3)) * offset).sum(1)


def _rate(stage: _Stage) -> float:
    progress = stage.schedule.progress
    if stage.frozen:
        return _RATES[1] * cosine((progress - stage.frozen_at) / (1.001 - stage.frozen_at))
    warm_up = min(1.0, (stage.schedule.step + 1) / _WARM_UP_STEPS)
    return _RATES[0] * warm_up * max(0.1, cosine(progress / _FREEZE_AT))


def _optimiser(stage: _Stage) -> torch.optim.Optimizer:
    parameters = [p for p in stage.vae.parameters() if p.requires_grad]
    device = stage.error.device
    options = {"fused": True, "capturable": True} if device.type == "cuda" else {}
    rate = torch.tensor(0.0, device=device)
    return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.0, **options)


def _save(stage: _Stage, path: Path) -> None:
    state = {
        "vae": stage.vae.state_dict(),
        "frozen": stage.frozen,
        "frozen_at": stage.frozen_at,
        **stage.schedule.state(),
    }
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def _load(stage: _Stage, path: Path, device: torch.device) -> None:
    state = torch.load(path, map_location=device, weights_only=True)
    stage.vae.load_state_dict(state["vae"])
    stage.schedule.resume(state)
    stage.frozen, stage.frozen_at = state["frozen"], state["frozen_at"]
    stage.vae.encoder.requires_grad_(not stage.frozen)
