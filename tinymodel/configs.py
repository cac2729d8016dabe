"""The components of the tiny model, with random weights.

The architecture is Z-Image's, only narrow. What is not a matter of width is the same: 16 latent
channels, patches of 2, a VAE factor of 8, latents of mean 0.1159 and deviation 1 / 0.3611, a
schedule with a shift of 3, text from the last layer but one.
"""

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3Model

from tinymodel import captions, tokenizer

TEXT_WIDTH = 128
LATENT_CHANNELS = 16
LATENT_MEAN, LATENT_SCALE = 0.1159, 0.3611
SHIFT = 3.0
PIXELS_PER_TOKEN = 16  # a side of the square that one image token stands for


def transformer() -> ZImageTransformer2DModel:
    """8 layers of 192: 6.3 million parameters.

    `axes_lens` costs nothing and bounds prompt tokens and picture sides: 1024 and 2048 pixels.
    """
    return ZImageTransformer2DModel(
        in_channels=LATENT_CHANNELS,
        dim=192,
        n_layers=8,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=[16, 16, 16],
        axes_lens=[1024, 128, 128],
    )


def vae() -> AutoencoderKL:
    """16 to 64 channels: a million parameters.

    No attention: what it learns of one picture size would not hold for others.
    """
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=256,
        scaling_factor=LATENT_SCALE,
        shift_factor=LATENT_MEAN,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def text_encoder() -> Qwen3Model:
    """3 layers of 128. The pipeline reads the last but one, so the third is never trained."""
    config = Qwen3Config(
        vocab_size=len(tokenizer.SPECIAL) + len(captions.VOCABULARY),
        hidden_size=TEXT_WIDTH,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=tokenizer.MAX_TOKENS,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        dtype=torch.float32,
    )
    return Qwen3Model(config)


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Z-Image-Turbo's schedule."""
    return FlowMatchEulerDiscreteScheduler(shift=SHIFT, use_dynamic_shifting=False)
