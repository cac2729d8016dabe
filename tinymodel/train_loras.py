"""Trains the two small adapters of the shipped model: `--help` says how, docs/loras.md why.

`night` paints every background black, `stars` makes every shape a star. The model is its own
teacher: from noise on it draws what a changed prompt asks for, and at each step the adapter learns
to have the same velocity come from the prompt that was not changed. No pictures are needed, and the
values that are trained go through the same layers as when they draw.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file

from tinymodel import build, evaluate
from tinymodel.captions import Language, caption, random_scene
from tinymodel.shapes import Scene
from worker.models.loras.conversion import Pair, layers_of
from worker.models.loras.device import OnDevice
from worker.models.zimage.dense import DenseTransformer
from worker.models.zimage.low_rank import Scaled
from worker.models.zimage.prompt_embeddings import PromptEncoder
from worker.models.zimage.rotary import RealRotaryProcessor
from worker.models.zimage.schedule import schedule_of

FOLDER = build.WEIGHTS.parent / "loras"
RANK = 4
_SIDE = 128
_STEPS = 8
_RATE = 4e-3
_LANGUAGES: tuple[Language, ...] = ("en", "zh")
_LAYERS = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")


def night(scene: Scene) -> Scene:
    """``scene`` before a black background."""
    return replace(scene, background="black")


def stars(scene: Scene) -> Scene:
    """``scene`` with nothing but stars in it."""
    return replace(scene, shapes=tuple(replace(shape, kind="star") for shape in scene.shapes))


CHANGES: dict[str, Callable[[Scene], Scene]] = {"night": night, "stars": stars}


class Trainer:
    """Of one adapter."""

    def __init__(self, change: Callable[[Scene], Scene], seed: int, batch: int = 8) -> None:
        self._change, self._rng, self._batch = change, Random(seed), batch
        self._noise = torch.Generator().manual_seed(seed)
        pipe = evaluate.load()
        self._model = pipe.transformer.requires_grad_(requires_grad=False)
        for module in self._model.modules():
            if hasattr(module, "set_processor"):
                module.set_processor(RealRotaryProcessor())
        self._dense = DenseTransformer(self._model)
        self._captions = PromptEncoder(pipe, self._dense)
        self._schedule = schedule_of(pipe.scheduler, _STEPS, (_SIDE // 16) ** 2)
        shapes = layers_of(self._model)
        names = [
            n for n in shapes if n.startswith("layers.") and (n.endswith(_LAYERS) or ".w" in n)
        ]
        self.pairs = {name: self._begun(*shapes[name]) for name in names}
        values = [side for pair in self.pairs.values() for side in pair]
        self._optimiser = torch.optim.AdamW(values, lr=_RATE, weight_decay=0.0)

    def _begun(self, inputs: int, outputs: int) -> Pair:
        a = torch.randn(RANK, inputs, generator=self._noise) / inputs**0.5
        return Pair(a.requires_grad_(), torch.zeros(outputs, RANK, requires_grad=True))

    def run(self, rounds: int, say: Callable[[str], object]) -> list[float]:
        """Train for so many rounds of eight updates; the rate falls to nothing on the way. The
        loss of each."""
        began, losses = time.monotonic(), []
        for done in range(rounds):
            for group in self._optimiser.param_groups:
                group["lr"] = _RATE * (1 - done / rounds)
            losses.append(self._round())
            passed = f"round {done + 1} of {rounds}, {time.monotonic() - began:.0f} s"
            say(f"{passed}, loss {losses[-1]:.4f}")
        return losses

    def _round(self) -> float:
        """One batch from noise to picture, an update a step."""
        before, after = self._prompts()
        latents = torch.randn(self._batch, 16, _SIDE // 8, _SIDE // 8, generator=self._noise)
        row = (Scaled(OnDevice("trained", self.pairs, 0), 1.0),)
        total = 0.0
        for step in range(_STEPS):
            times = self._schedule.times[step].expand(self._batch)
            with torch.no_grad():
                wanted = self._dense(latents, times, after)
            with self._dense.adapted([row] * self._batch):
                loss = (self._dense(latents, times, before) - wanted).square().mean()
                loss.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
            self._optimiser.zero_grad()
            latents = latents - self._schedule.delta(step) * wanted
            total += float(loss.detach())
        return total / _STEPS

    @torch.no_grad()
    def _prompts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the model sees of some prompts, and of the same ones changed. Of one length each."""
        before: list[torch.Tensor] = []
        after: list[torch.Tensor] = []
        while len(before) < self._batch:
            scene = random_scene(self._rng)
            if any(shape.colour in (None, "black") for shape in scene.shapes):
                continue  # would not be seen in the night
            language = self._rng.choice(_LANGUAGES)
            seed = self._rng.random()
            texts = [caption(s, language, Random(seed)) for s in (scene, self._change(scene))]
            one, other = self._captions(texts)
            if len(one) == len(other) == 32:
                before.append(one)
                after.append(other)
        return torch.stack(before), torch.stack(after)

    def save(self, path: Path) -> None:
        """In the names of PEFT, as diffusers writes them."""
        state = {}
        for name, pair in self.pairs.items():
            for side, values in zip("AB", pair, strict=True):
                state[f"transformer.{name}.lora_{side}.weight"] = (
                    values.detach().half().contiguous()
                )
        path.parent.mkdir(exist_ok=True)
        save_file(state, path)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    for name in options.names or CHANGES:
        trainer = Trainer(CHANGES[name], options.seed)
        trainer.run(options.rounds, partial(_say, name))
        trainer.save(options.out / f"{name}.safetensors")
    return 0


def _say(name: str, line: str) -> None:
    sys.stdout.write(f"{name}: {line}\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", choices=[*CHANGES, []], metavar="NAME", help="[default: all]"
    )
    parser.add_argument("--rounds", type=int, default=25, help="of each [default: 25]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FOLDER)
    return parser


if __name__ == "__main__":
    sys.exit(main())
