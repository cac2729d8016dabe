"""Z-Image with random weights: the right sizes and times without a download."""

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Sizes:
    """Configurations of the three models; what is not named has the class's default."""

    transformer: dict[str, Any] = field(default_factory=dict)
    vae: dict[str, Any] = field(default_factory=dict)
    text_encoder: dict[str, Any] = field(default_factory=dict)


TURBO = Sizes(
    transformer={},  # the defaults of ZImageTransformer2DModel are Z-Image-Turbo's sizes
    vae={
        "latent_channels": 16,
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    text_encoder={
        "vocab_size": 151_936,
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 9728,
        "max_position_embeddings": 40_960,
    },
)


def random_zimage(sizes: Sizes, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """A ``ZImagePipeline`` whose weights are made on ``device`` in ``dtype``.

    The same weights wherever device kind and seed are the same. The classes' own initialisation
    is scaled by fan-in and every block is normalised, so latents stay finite at any depth.
    """
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return ZImagePipeline(
                scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
                tokenizer=byte_tokenizer(),
                transformer=_frozen(ZImageTransformer2DModel(**sizes.transformer)),
                vae=_frozen(AutoencoderKL(**sizes.vae)),
                text_encoder=_frozen(Qwen3Model(Qwen3Config(**sizes.text_encoder))),
            )
    finally:
        torch.set_default_dtype(before)


def byte_tokenizer() -> Any:
    """One token a byte, with Qwen's chat marks: captions come out longer than with the real one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=_CHAT,
        model_max_length=131_072,
    )


def _frozen(model: torch.nn.Module) -> torch.nn.Module:
    return model.eval().requires_grad_(False)
