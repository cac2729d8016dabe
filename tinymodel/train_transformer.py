"""The second stage: transformer and text encoder together learn to draw from captions.

Plain flow matching: the transformer sees a mixture of latents and noise and learns latents minus
noise. Latents come from a pool that was drawn and encoded once; noise, noise level and phrasing are
new each time. What is kept is a moving average of the weights.

Then the result teaches a copy of itself to draw at once what it draws with guidance.
"""

import copy
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from torch import Tensor
from transformers import Qwen3Model

from tinymodel import batched, build, configs, tokenizer
from tinymodel.data import (
    PHRASINGS,
    SHORT,
    Samples,
    batches,
    held_out_prompts,
    pictures,
    size_weights,
)
from tinymodel.graphs import Graphs
from tinymodel.judge import judge
from tinymodel.muon import Muon
from tinymodel.schedule import Schedule, cosine
from tinymodel.train_vae import encode

_log = logging.getLogger(__name__)

_WARM_UP_STEPS = 500
_AVERAGE_DECAY = 0.9995
_LONG_SHARE = 0.15  # of steps with captions of LONG tokens, in the sizes that are drawn often
_OFTEN = 0.03  # of all steps
_EMPTY_SHARE = 0.04  # of captions
_PURE_NOISE_SHARE, _LOGIT_NORMAL_SHARE = 0.1, 0.2  # of samples; the others: shifted uniform
_GUIDANCE = 1.75  # that a second trainer learns to do without: 1 and 3 draw fewer shapes right
_WAIT_EVERY_STEPS = 50
_REPORT_EVERY_STEPS = 1000
_SAVE_EVERY_S = 150.0
_PREVIEWS = 64


@dataclass(frozen=True)
class Pool:
    """Everything drawn in one size, on the device: latents (N, 16, H, W) and tokens."""

    latents: Tensor
    short: Tensor
    long: Tensor
    batch: int
    weight: float


def fill(
    vae: AutoencoderKL, samples: list[Samples], tokens_per_batch: int, device: torch.device
) -> list[Pool]:
    """Draws and encodes all samples."""
    pools = []
    for one in samples:
        latents = torch.cat(
            [
                encode(vae, pictures(one, rows, device)).half()
                for rows in batches(one, pixels=1 << 23 if device.type == "cuda" else 1 << 20)
            ]
        )
        pools.append(
            Pool(
                latents,
                torch.from_numpy(one.short).to(device),
                torch.from_numpy(one.long).to(device),
                batch_size(one.width, one.height, tokens_per_batch),
                size_weights()[one.width, one.height],
            )
        )
    return pools


def batch_size(width: int, height: int, tokens_per_batch: int) -> int:
    """Samples a step, so that the number of tokens is about the same for all sizes."""
    return max(1, tokens_per_batch // (width * height // configs.PIXELS_PER_TOKEN**2 + SHORT))


_Module = TypeVar("_Module", bound=torch.nn.Module)
Models = tuple[ZImageTransformer2DModel, Qwen3Model]


class Trainer:
    """Weights, their average and the optimisers, in memory and in run/NAME.pt."""

    def __init__(
        self,
        vae: AutoencoderKL,
        schedule: Schedule,
        run: Path,
        device: torch.device,
        rate: float = 8e-4,
        teacher: Models | None = None,
        name: str = "transformer",
    ) -> None:
        """With a teacher (used as it is) learns what that draws with guidance, from its weights."""
        torch.manual_seed(schedule.step)
        self.vae, self.schedule, self.device, self.rate = vae, schedule, device, rate
        self.transformer = configs.transformer().to(device)
        self.text_encoder = configs.text_encoder().to(device)
        self.teacher = teacher
        if teacher:
            self.transformer.load_state_dict(teacher[0].state_dict())
            self.text_encoder.load_state_dict(teacher[1].state_dict())
        self.average: Models = (_frozen(self.transformer), _frozen(self.text_encoder))
        batched.use_real_rotary(self.transformer)
        batched.use_real_rotary(self.average[0])
        self.parameters = [*self.transformer.parameters(), *self.text_encoder.parameters()]
        self._averaged = [p for module in self.average for p in module.parameters()]
        self.optimisers = self._optimisers()
        self._graphs = Graphs(device)
        self._loss_sum = torch.zeros((), device=device)
        self._path, self._folder = run / f"{name}.pt", run / "weights"
        if self._path.exists():
            self._load()

    def _optimisers(self) -> list[torch.optim.Optimizer]:
        """Muon for the matrices in blocks, AdamW for all else."""
        transformer, start = self.transformer, torch.tensor(0.0, device=self.device)
        blocks = [*_blocks(transformer), *transformer.context_refiner, *self.text_encoder.layers]
        matrices = [p for block in blocks for p in block.parameters() if p.ndim == 2]
        taken = set(map(id, matrices))
        others = [p for p in self.parameters if id(p) not in taken]
        options = {"fused": True, "capturable": True} if self.device.type == "cuda" else {}
        adam = torch.optim.AdamW(
            others, lr=start.clone(), betas=(0.9, 0.98), weight_decay=0.01, **options
        )
        return [Muon(matrices, start), adam]

    def start_from(self, folder: Path) -> None:
        """Takes over the weights of a diffusers folder, in place of random ones."""
        kinds = (("transformer", ZImageTransformer2DModel), ("text_encoder", Qwen3Model))
        for at, (name, kind) in enumerate(kinds):
            weights = kind.from_pretrained(folder, subfolder=name).float().state_dict()
            for module in ((self.transformer, self.text_encoder)[at], self.average[at]):
                module.load_state_dict(weights)

    def compile(self) -> None:
        """Compiles the blocks, once for all sizes."""
        torch._dynamo.config.recompile_limit = 64
        for transformer in (self.transformer, *(self.teacher or ())[:1]):
            for block in _blocks(transformer):
                block.compile(dynamic=True)

    def run(self, pools: list[Pool]) -> None:
        """Trains until the schedule ends; saves, previews and reports on the way."""
        rng, saved_at = Random(self.schedule.step), self.schedule.elapsed_s
        weights = [pool.weight for pool in pools]
        while not self.schedule.done:
            pool = rng.choices(pools, weights)[0]
            is_long = pool.weight >= _OFTEN and rng.random() < _LONG_SHARE
            rate = self.rate * min(1.0, (self.schedule.step + 1) / _WARM_UP_STEPS)
            for group in (g for o in self.optimisers for g in o.param_groups):
                group["lr"].fill_(rate * cosine(self.schedule.progress))
            self._graphs.run((id(pool), is_long), partial(self._step, pool, is_long))
            if self.schedule.step % _WAIT_EVERY_STEPS == 0:
                self._loss_sum.item()  # the clock must not run ahead of the device
            self.schedule.tick()
            if self.schedule.step % _REPORT_EVERY_STEPS == 0:
                self._report()
            if self.schedule.elapsed_s - saved_at > _SAVE_EVERY_S:
                self.save()
                _log.info("step %d: %s", self.schedule.step, self.preview())
                saved_at = self.schedule.elapsed_s
        self.save()

    def _report(self) -> None:
        loss = self._loss_sum.item() / _REPORT_EVERY_STEPS
        self._loss_sum.zero_()
        elapsed_s = self.schedule.elapsed_s
        _log.info("step %d at %.0f s: loss %.4f", self.schedule.step, elapsed_s, loss)

    def _step(self, pool: Pool, is_long: bool) -> None:
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss = self._loss(pool, is_long)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        detached = [p.detach() for p in self.parameters]
        torch._foreach_lerp_(self._averaged, detached, 1 - _AVERAGE_DECAY)
        self._loss_sum.add_(loss.detach())

    def _loss(self, pool: Pool, is_long: bool) -> Tensor:
        count = max(1, pool.batch - pool.batch // 8) if is_long else pool.batch
        rows = torch.randint(len(pool.latents), (count,), device=self.device)
        phrasing = torch.randint(PHRASINGS, (count,), device=self.device)
        tokens = (pool.long[rows] if is_long else pool.short[rows, phrasing]).long()
        empty = torch.rand(count, device=self.device) < _EMPTY_SHARE
        if not is_long:
            tokens = torch.where(empty[:, None], _empty(tokens), tokens)
        clean = pool.latents[rows].float()
        noise = torch.randn_like(clean)
        sigma = _noise_levels(count, self.device)
        mixture = clean + sigma[:, None, None, None] * (noise - clean)
        time, learner = 1 - sigma, (self.transformer, self.text_encoder)
        target = self._guided(mixture, time, tokens) if self.teacher else clean - noise
        out = self._velocity(learner, mixture, time, tokens)
        return (out - target).square().mean()

    @torch.no_grad()
    def _guided(self, mixture: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        """The teacher's velocity with guidance; for an empty prompt, just its velocity."""
        assert self.teacher
        asked = self._velocity(self.teacher, mixture, time, tokens)
        unasked = self._velocity(self.teacher, mixture, time, _empty(tokens))
        return asked + _GUIDANCE * (asked - unasked)

    def _velocity(self, models: Models, mixture: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        transformer, text_encoder = models
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            text = batched.encode_text(text_encoder, tokens)
            return batched.velocity(transformer, mixture, time, text, tokens).float()

    def preview(self, side: int = 256) -> str:
        """Draws and judges held-out prompts with the averaged weights."""
        prompts = held_out_prompts(_PREVIEWS)
        tokens = torch.zeros(_PREVIEWS, SHORT, dtype=torch.long)
        words = tokenizer.build()
        for row, ids in enumerate(tokenizer.encode(words, [prompt for prompt, _ in prompts])):
            tokens[row, : len(ids)] = torch.tensor(ids)
        noise = torch.randn(_PREVIEWS, configs.LATENT_CHANNELS, side // 8, side // 8)
        transformer, text_encoder = self.average
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            images = batched.draw(
                transformer, text_encoder, self.vae, tokens.to(self.device), noise.to(self.device)
            )
        drawn = build.to_images(images)
        build.sheet(drawn, columns=8, side=128).save(self._folder.parent / "preview.png")
        verdicts = [judge(image, scene) for image, (_, scene) in zip(drawn, prompts, strict=True)]
        return ", ".join(
            f"{name} {sum(getattr(v, name) for v in verdicts)}/{len(verdicts)}"
            for name in ("background_ok", "colour_ok", "shape_ok", "position_ok", "size_ok")
        )

    def save(self) -> None:
        """A checkpoint to go on from, and the averaged weights as a diffusers folder."""
        state = {
            "weights": [m.state_dict() for m in (self.transformer, self.text_encoder)],
            "average": [m.state_dict() for m in self.average],
            "optimisers": [o.state_dict() for o in self.optimisers],
            **self.schedule.state(),
        }
        torch.save(state, self._path.with_suffix(".new"))
        self._path.with_suffix(".new").replace(self._path)
        modules = [copy.deepcopy(m).cpu() for m in (*self.average, self.vae)]
        build.write(build.pipeline(*modules), self._folder)

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self._path, map_location=self.device, weights_only=True)
        modules = (self.transformer, self.text_encoder, *self.average)
        for module, weights in zip(modules, state["weights"] + state["average"], strict=True):
            module.load_state_dict(weights)
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.schedule.resume(state)


def _frozen(module: _Module) -> _Module:
    return copy.deepcopy(module).eval().requires_grad_(False)


def _blocks(transformer: ZImageTransformer2DModel) -> list[torch.nn.Module]:
    return [*transformer.noise_refiner, *transformer.layers]


def _noise_levels(count: int, device: torch.device) -> Tensor:
    uniform = batched.shifted(torch.rand(count, device=device))
    middle = torch.randn(count, device=device).sigmoid()
    kind = torch.rand(count, device=device)
    sigma = torch.where(kind < _PURE_NOISE_SHARE + _LOGIT_NORMAL_SHARE, middle, uniform)
    return torch.where(kind < _PURE_NOISE_SHARE, torch.ones_like(sigma), sigma)


def _empty(tokens: Tensor) -> Tensor:
    """The tokens of an empty prompt: start, end."""
    out = torch.zeros_like(tokens)
    start, end = (tokenizer.SPECIAL.index(mark) for mark in (tokenizer.START, tokenizer.END))
    out[:, 0], out[:, 1] = start, end
    return out
