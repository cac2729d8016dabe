"""Writes the components as a diffusers folder that `ZImagePipeline.from_pretrained` loads.

`python -m tinymodel.build FOLDER` writes one with random weights.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import AutoencoderKL, ZImagePipeline, ZImageTransformer2DModel
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3Model

from tinymodel import configs, tokenizer

WEIGHTS = Path(__file__).parent / "weights"


def pipeline(
    transformer: ZImageTransformer2DModel, text_encoder: Qwen3Model, vae: AutoencoderKL
) -> ZImagePipeline:
    """The three trained components with tokenizer and scheduler."""
    return ZImagePipeline(
        scheduler=configs.scheduler(),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer.build(),
        transformer=transformer,
    )


def write(pipe: ZImagePipeline, folder: Path) -> None:
    """Saves a pipeline with weights in half precision; it loads in fp32 unless told otherwise."""
    pipe.save_pretrained(folder)
    for path in folder.rglob("*.safetensors"):
        halved = {
            name: value.half().contiguous() if value.is_floating_point() else value
            for name, value in load_file(path).items()
        }
        save_file(halved, path, metadata={"format": "pt"})


def random_pipeline(seed: int = 0) -> ZImagePipeline:
    """The pipeline before training."""
    torch.manual_seed(seed)
    return pipeline(configs.transformer(), configs.text_encoder(), configs.vae())


def to_images(pixels: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in 0…1 as pictures."""
    arrays = (pixels.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()
    return [Image.fromarray(array) for array in arrays]


def sheet(images: list[Image.Image], columns: int, side: int, gap: int = 4) -> Image.Image:
    """Pictures side by side, each fitted into a square of `side` pixels."""
    rows = -(-len(images) // columns)
    step = side + gap
    out = Image.new("RGB", (columns * step - gap, rows * step - gap), "white")
    for at, image in enumerate(images):
        fitted = ImageOps.contain(image, (side, side))
        x, y = at % columns * step, at // columns * step
        out.paste(fitted, (x + (side - fitted.width) // 2, y + (side - fitted.height) // 2))
    return out


def main() -> None:
    """Writes random weights to the folder named on the command line."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tinymodel.build FOLDER")
    folder = Path(sys.argv[1])
    with TemporaryDirectory(dir=folder.parent) as scratch:
        write(random_pipeline(), Path(scratch) / "weights")
        (Path(scratch) / "weights").rename(folder)


if __name__ == "__main__":
    main()
