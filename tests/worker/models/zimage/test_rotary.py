from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_z_image import (
    RopeEmbedder,
    ZImageTransformerBlock,
    ZSingleStreamAttnProcessor,
)

from worker.models.zimage.rotary import RealRotaryProcessor, real_table, rotated


def table(tokens: int) -> torch.Tensor:
    positions = torch.randint(0, 500, (tokens, 3))
    embedder = RopeEmbedder(axes_dims=[32, 48, 48], axes_lens=[1024, 512, 512])
    frequencies: torch.Tensor = embedder(positions)
    return frequencies


def test_rotates_as_complex_numbers_do() -> None:
    vectors, frequencies = torch.randn(2, 40, 3, 128), table(40)
    pairs = torch.view_as_complex(vectors.reshape(2, 40, 3, -1, 2))
    wanted = torch.view_as_real(pairs * frequencies[:, None]).flatten(-2)
    assert torch.allclose(rotated(vectors, real_table(frequencies)), wanted, atol=1e-5)


@pytest.mark.parametrize("rows_in_table", [True, False])
@torch.no_grad()
def test_a_block_computes_what_it_did(rows_in_table: bool) -> None:
    block: Any = ZImageTransformerBlock(0, 256, 2, 2, 1e-5, qk_norm=True)
    tokens, time, frequencies = torch.randn(2, 40, 256), torch.randn(2, 256), table(40)
    block.attention.set_processor(ZSingleStreamAttnProcessor())
    wanted = block(tokens, None, frequencies.expand(2, -1, -1), time)
    block.attention.set_processor(RealRotaryProcessor())
    given = frequencies.expand(2, -1, -1) if rows_in_table else real_table(frequencies)
    assert torch.allclose(block(tokens, None, given, time), wanted, atol=1e-5)


@torch.no_grad()
def test_a_mask_keeps_its_meaning() -> None:
    block: Any = ZImageTransformerBlock(0, 256, 2, 2, 1e-5, qk_norm=True, modulation=False)
    tokens, frequencies = torch.randn(1, 40, 256), table(40)[None]
    mask = torch.arange(40)[None] < 30
    wanted = block(tokens, mask, frequencies)
    block.attention.set_processor(RealRotaryProcessor())
    assert torch.allclose(block(tokens, mask, frequencies), wanted, atol=1e-5)
