from typing import Any

import pytest
import torch

from worker.models.zimage.decoder import PictureDecoder


@torch.no_grad()
def test_latents_that_are_not_finite_draw_nothing(small_zimage: Any) -> None:
    decode = PictureDecoder(small_zimage)
    latents = [torch.zeros(16, 8, 8), torch.full((16, 8, 8), torch.nan)]
    with pytest.raises(FloatingPointError, match="not finite"):
        decode.taken([decode(each) for each in latents], latents)
