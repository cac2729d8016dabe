"""Small LoRAs in the names that trainers give them, for the small Z-Image of these tests."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

Names = Callable[[str, str], str]


def peft(module: str, side: str) -> str:
    return f"transformer.{module}.lora_{side}.weight"


def comfy(module: str, side: str) -> str:
    return f"diffusion_model.{module}.lora_{side}.weight"


def kohya(module: str, side: str) -> str:
    name = {"A": "lora_down", "B": "lora_up"}[side]
    return f"lora_unet_{module.replace('.', '_')}.{name}.weight"


def tensors(
    layers: Mapping[str, tuple[int, int]],
    modules: tuple[str, ...],
    *,
    rank: int = 4,
    seed: int = 0,
    strength: float = 0.05,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B by module, strong enough to change a picture."""
    made = torch.Generator().manual_seed(seed)
    found = {}
    for module in modules:
        inputs, outputs = layers[module]
        found[module] = (
            torch.randn(rank, inputs, generator=made) * strength,
            torch.randn(outputs, rank, generator=made) * strength,
        )
    return found


def write(
    path: Path,
    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    names: Names = peft,
    alpha: float | None = None,
) -> Path:
    """``alpha``: as the trainer of these ``names`` says it."""
    state: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    for module, (a, b) in pairs.items():
        state |= {names(module, "A"): a, names(module, "B"): b}
        if alpha is not None and names is kohya:
            state[f"lora_unet_{module.replace('.', '_')}.alpha"] = torch.tensor(alpha)
        elif alpha is not None and names is comfy:
            state[f"diffusion_model.{module}.alpha"] = torch.tensor(alpha)
    if alpha is not None and names is peft:
        rank = next(iter(pairs.values()))[0].shape[0]
        config = {"r": rank, "lora_alpha": alpha, "target_modules": [*pairs]}
        about = {f"transformer.{name}": value for name, value in config.items()}
        metadata["lora_adapter_metadata"] = json.dumps(about)
    save_file({k: v.contiguous() for k, v in state.items()}, path, metadata or None)
    return path
