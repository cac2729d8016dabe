import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel

from worker.models.base import Pipeline, Sample
from worker.models.loading.folder import Defaults
from worker.models.loading.load import adapted
from worker.models.loading.random_zimage import Sizes, byte_tokenizer, random_zimage
from worker.models.zimage.pipeline import ZImageStepwise
from worker.types import DrawSpec, Parameters, Pixels

CPU = torch.device("cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
KERNEL_DEVICE = torch.device("cuda") if torch.cuda.is_available() else CPU
needs_triton = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="neither CUDA nor TRITON_INTERPRET=1"
)
DEFAULTS = Defaults("small", steps=4, guidance_scale=0.0, size=(64, 64))
VAE = {
    "block_out_channels": (8, 8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 64,
}
SMALL = Sizes(
    transformer={
        "dim": 96,
        "n_layers": 3,
        "n_refiner_layers": 1,
        "n_heads": 4,
        "n_kv_heads": 4,
        "cap_feat_dim": 32,
        "axes_dims": [8, 8, 8],
        "axes_lens": [1024, 128, 128],
    },
    vae=VAE
    | {
        "latent_channels": 16,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    text_encoder={
        "vocab_size": 300,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 64,
    },
)


@pytest.fixture(scope="session")
def small_zimage() -> Any:
    """A ``ZImagePipeline`` of a few hundred thousand random parameters in fp32."""
    pipeline = random_zimage(SMALL, CPU, torch.float32)
    # As far apart as trained weights put them: prompts and steps must change the picture.
    for name, weight in pipeline.transformer.named_parameters():
        if "adaLN" in name or "cap_embedder.1" in name:
            weight.mul_(3)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def zimage_folder(small_zimage: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    small_zimage.save_pretrained(folder)
    return folder


@pytest.fixture
def stepwise(small_zimage: Any) -> ZImageStepwise:
    pipeline = adapted(small_zimage, DEFAULTS, max_pixels=1 << 20)
    assert isinstance(pipeline, ZImageStepwise)
    return pipeline


@pytest.fixture(scope="session")
def stable_diffusion() -> Any:
    """A tiny pipeline that has nothing of Z-Image."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = 24
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(**VAE, latent_channels=4).eval(),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=300,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=24,
                projection_dim=16,
            )
        ).eval(),
        tokenizer=tokenizer,
        unet=small_unet(),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def small_unet(**options: Any) -> Any:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
        **options,
    ).eval()


def spec(prompt: str = "a red circle", **changes: Any) -> DrawSpec:
    seed = changes.pop("seed", 7)
    return DrawSpec(prompt, seed, replace(Parameters(64, 64, steps=4), **changes))


def go_on(_: int) -> bool:
    return True


def draw(pipeline: Pipeline, *specs: DrawSpec) -> list[Pixels]:
    """All ``specs`` as one batch from start to finish."""
    samples = pipeline.start(specs)
    finish(pipeline, samples)
    return pipeline.finish(samples)


def finish(pipeline: Pipeline, samples: list[Sample]) -> None:
    """Steps all samples to their ends, together for as long as they have steps."""
    while running := [sample for sample in samples if not sample.drawn]:
        pipeline.step(running, go_on)


def close(one: Pixels, other: Pixels) -> bool:
    """Equal within the promise: at most 1 of 255 in at most 0.1 % of the values."""
    difference = np.abs(one.astype(int) - other.astype(int))
    return bool(difference.max() <= 1 and (difference > 0).mean() <= 0.001)
