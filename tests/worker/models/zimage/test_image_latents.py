import numpy as np
import torch
from PIL import Image

from tinymodel import evaluate
from worker.models.zimage.image_latents import ImageEncoder
from worker.types import Pixels


def picture(width: int, height: int) -> Pixels:
    rough = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    return np.asarray(Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC))


@torch.no_grad()
def test_what_does_not_fit_the_memory_is_encoded_in_parts_and_is_nearly_the_same() -> None:
    vae = evaluate.load().vae
    tiled, encode = [], vae._encode

    def recorded(image: torch.Tensor) -> torch.Tensor:
        tiled.append(vae.use_tiling)
        found: torch.Tensor = encode(image)
        return found

    vae._encode = recorded
    large = picture(1040, 1024)
    whole = ImageEncoder(vae, lambda: 1 << 40)(large)
    parts = ImageEncoder(vae, lambda: 0)(large)
    ImageEncoder(vae, lambda: 0)(picture(128, 128))  # small ones are the same whatever is left
    assert (tiled, vae.use_tiling) == ([False, True, False], False)
    assert (whole.mean - parts.mean).abs().mean() < 0.15 * whole.mean.std()
