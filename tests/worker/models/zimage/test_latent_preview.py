from types import SimpleNamespace

import numpy as np
import torch

from worker.models.zimage.latent_preview import LatentPreview

MIX = torch.tensor([[0.9, -0.2, 0.1], [0.1, 0.8, -0.3], [0.0, 0.1, 0.7], [0.3, 0.3, 0.3]])


class Vae:
    """Four channels of mixed colours, one cell of 8 pixels each."""

    device, dtype = torch.device("cpu"), torch.float32
    config = SimpleNamespace(shift_factor=0.1, scaling_factor=0.4)

    def encode(self, pictures: torch.Tensor) -> SimpleNamespace:
        cells = torch.nn.functional.avg_pool2d(pictures, 8)
        mixed = torch.einsum("nkhw,ck->nchw", cells, MIX)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: mixed))


def test_each_cell_has_the_colour_that_was_encoded() -> None:
    colours = np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    picture = torch.from_numpy(colours.repeat(8, 0).repeat(8, 1)).permute(2, 0, 1)[None]
    (mixed,) = Vae().encode(picture / 127.5 - 1).latent_dist.mode()
    seen = LatentPreview(Vae())((mixed - 0.1) * 0.4)
    assert seen.shape == (4, 6, 3)
    assert np.abs(seen.astype(int) - colours).max() <= 1


def test_latents_out_of_range_are_cut_off() -> None:
    seen = LatentPreview(Vae())(torch.full((4, 2, 2), 99.0))
    assert set(np.unique(seen)) <= {0, 255}
