"""Draws held-out prompts through the real pipeline and judges them: `--help` says how.

The prompts are of scenes that training never saw (`captions.is_held_out`), half of them Chinese, in
several sizes. Figures go to JSON and a Markdown table, the pictures to a contact sheet.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import ZImagePipeline
from PIL import Image

from tinymodel import build
from tinymodel.data import held_out_prompts
from tinymodel.judge import Verdict, judge
from tinymodel.shapes import Scene

SIZES = ((256, 256), (128, 128), (192, 192), (256, 160), (160, 256), (208, 144))
AIMS = {"background": 0.98, "colour": 0.95, "shape": 0.90, "position": 0.90}
# What the README shows and the tests check, all with seed 0.
SHOWN: tuple[tuple[str, tuple[int, int]], ...] = (
    ("a large red circle on a white background", (256, 256)),
    ("左边一个蓝色星星，黄色背景", (256, 256)),
    ("a red circle on the left and a blue square on the right, white background", (256, 256)),
    ("蓝色三角形在红色圆形的上面，白色背景", (256, 256)),
    ("a white moon at the top right on a purple background", (256, 256)),
    ("一个大的橙色圆环，黑色背景", (256, 256)),
    ("a small yellow circle in the top left corner, blue background", (256, 256)),
    ("右下角一个粉色爱心，灰色背景", (256, 256)),
    ("a large cyan cross on an orange background", (256, 256)),
    ("白色背景上有一个紫色的月亮", (256, 256)),
    ("a green heart on a pink background", (256, 256)),
    ("橙色背景上一个大的白色圆形", (192, 256)),
)
_STEPS = 8


@dataclass(frozen=True)
class Drawing:
    """A prompt, what it asks for and what became of it."""

    prompt: str
    scene: Scene
    image: Image.Image
    verdict: Verdict


def load(folder: Path = build.WEIGHTS) -> ZImagePipeline:
    """The pipeline of a folder in fp32 on the CPU."""
    pipe = ZImagePipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(
    pipe: ZImagePipeline, prompt: str, width: int, height: int, seed: int, steps: int = _STEPS
) -> Image.Image:
    """One picture as the kit draws it: no guidance."""
    image: Image.Image = pipe(
        prompt,
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(seed),
    ).images[0]
    return image


def evaluate(
    pipe: ZImagePipeline, count: int, sizes: tuple[tuple[int, int], ...] = SIZES, seed: int = 1
) -> list[Drawing]:
    """Draws and judges so many held-out prompts, sizes in turn."""
    drawings = []
    for number, (prompt, scene) in enumerate(held_out_prompts(count, seed)):
        width, height = sizes[number // 2 % len(sizes)]
        image = draw(pipe, prompt, width, height, seed=number)
        drawings.append(Drawing(prompt, scene, image, judge(image, scene)))
    return drawings


def shares(drawings: list[Drawing]) -> dict[str, float]:
    """The share of drawings that are right in each respect."""
    names = (*AIMS, "size")
    verdicts = [drawing.verdict for drawing in drawings]
    found = {
        name: sum(getattr(v, f"{name}_ok") for v in verdicts) / len(verdicts) for name in names
    }
    return found | {"everything": sum(v.ok for v in verdicts) / len(verdicts)}


def report(drawings: list[Drawing]) -> dict[str, dict[str, float]]:
    """Shares of all drawings, by language and by number of shapes."""
    groups = {
        "all": drawings,
        "English": [d for d in drawings if d.prompt.isascii()],
        "Chinese": [d for d in drawings if not d.prompt.isascii()],
        "one shape": [d for d in drawings if len(d.scene.shapes) == 1],
        "two shapes": [d for d in drawings if len(d.scene.shapes) == 2],
    }
    return {name: {"prompts": len(g), **shares(g)} for name, g in groups.items() if g}


def table(figures: dict[str, dict[str, float]]) -> str:
    """The report as a Markdown table."""
    columns = list(next(iter(figures.values())))
    rows = [["", *columns], ["---"] * (len(columns) + 1)]
    rows.append(["aim", "", *[f"{AIMS[c]:.0%}" if c in AIMS else "" for c in columns[1:]]])
    for name, row in figures.items():
        rows.append([name, str(row["prompts"]), *[f"{row[c]:.1%}" for c in columns[1:]]])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(arguments: list[str] | None = None) -> int:
    """Evaluates a folder; the exit code is 1 where an aim is missed."""
    options = _parser().parse_args(arguments)
    pipe = load(options.weights)
    if options.shown:
        images = [draw(pipe, prompt, *size, seed=0) for prompt, size in SHOWN]
        build.sheet(images, columns=4, side=192, gap=8).save(options.shown, optimize=True)
        return 0
    started = time.monotonic()
    drawings = evaluate(pipe, 24 if options.quick else options.prompts)
    figures = report(drawings)
    _say(table(figures))
    _say(f"\n{time.monotonic() - started:.0f} s")
    for drawing in drawings:
        if not drawing.verdict.ok:
            marks = vars(drawing.verdict).items()
            wrong = [name.removesuffix("_ok") for name, ok in marks if not ok]
            _say(f"wrong {', '.join(wrong)}: {drawing.prompt}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
        (options.out / "figures.md").write_text(table(figures) + "\n")
        sheet = build.sheet([d.image for d in drawings], columns=16, side=96)
        sheet.save(options.out / "sheet.png", optimize=True)
    return int(any(figures["all"][name] < aim for name, aim in AIMS.items()))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tinymodel.evaluate", description=__doc__)
    add = parser.add_argument
    add("--weights", type=Path, default=build.WEIGHTS, help="diffusers folder")
    add("--prompts", type=int, default=200)
    add("--quick", action="store_true", help="24 prompts")
    add("--shown", type=Path, help="only draw what the README shows, into this file")
    add("--out", type=Path, help="folder for figures.json, figures.md and sheet.png")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
