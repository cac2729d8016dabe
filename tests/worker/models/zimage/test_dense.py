from typing import Any

import pytest
import torch

from tests.worker.models.conftest import CPU, SMALL
from worker.models.acceleration import optimisations
from worker.models.loading.random_zimage import random_zimage
from worker.models.zimage.dense import DenseTransformer
from worker.models.zimage.prompt_embeddings import PromptEncoder


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 8), (10, 22)])
@torch.no_grad()
def test_computes_what_diffusers_computes(height: int, width: int) -> None:
    """With other times for other rows, and patches that need padding."""
    pipeline = random_zimage(SMALL, CPU, torch.float32)
    prompts = ["a red circle", "blue", "一颗星"]
    latents, times = torch.randn(3, 16, height, width), torch.tensor([0.0, 0.3, 0.9])
    hidden, _ = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)
    frames = [row.unsqueeze(1) for row in latents]
    (wanted,) = pipeline.transformer(frames, times, hidden, return_dict=False)

    optimisations.apply(optimisations.NONE, pipeline)
    dense = DenseTransformer(pipeline.transformer)
    captions = torch.stack(PromptEncoder(pipeline, dense)(prompts))
    output = dense(latents, times, captions)
    assert torch.allclose(output, torch.stack(wanted).squeeze(2), atol=1e-5)


@torch.no_grad()
def test_tables_are_bounded(small_zimage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.models.zimage.dense._KEPT_TABLES", 2)
    dense = DenseTransformer(small_zimage.transformer)
    tables = [dense._table(side, side, 32) for side in (1, 2, 3, 1)]
    assert len(dense._tables) == 2
    assert torch.equal(tables[0], tables[3])
