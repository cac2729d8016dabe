"""A model whose transformer (or UNet) is one ``.safetensors`` file, as ComfyUI and others share it.

Such a file holds weights and nothing else. Text encoder, VAE, tokenizer and settings are those of
the model that it was made from: ``model.base``. Torch and diffusers are imported only to load it.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from worker.models.loading.files import Flaw, file_flaws, parts_of
from worker.models.loading.folder import ModelLoadError, class_of

if TYPE_CHECKING:
    import torch

SUFFIX = ".safetensors"
_OTHERS = {
    ".ckpt": "it holds pickled code, which is never run",
    ".pt": "it holds pickled code, which is never run",
    ".pth": "it holds pickled code, which is never run",
    ".bin": "it holds pickled code, which is never run",
    ".gguf": "GGUF is not read here",
}
_CONVERT = "name a .safetensors file of the same weights"
_SCALED = re.compile(r"\.(scale_weight|scale_input|weight_scale|input_scale|comfy_quant)$")
_ADAPTER = re.compile(r"\.(lora_[AB]|lora_up|lora_down|lora_(down|up)\.weight)|^lora_")
_WHOLE = ("cond_stage_model.", "conditioner.", "first_stage_model.", "text_encoders.", "vae.")
"""What names begin with in files that hold text encoder and VAE, too."""
_DENOISERS = ("transformer", "unet")
_FEW_MORE = 1.01
"""Some files have a norm or a table that diffusers does without."""


def is_single_file(source: str) -> bool:
    """Whether ``source`` names one file of weights, of whatever kind."""
    return Path(source).suffix in {SUFFIX, *_OTHERS} and not Path(source).expanduser().is_dir()


def flaws_of_file(path: Path) -> Iterator[Flaw]:
    """Why ``path`` cannot be loaded, as far as its name and its head show."""
    if not path.is_file():
        yield Flaw(f"model file {path} does not exist", "check model.source")
    elif why := _OTHERS.get(path.suffix):
        yield Flaw(f"{path}: {why}", _CONVERT)
    elif found := list(file_flaws(path)):
        yield from found
    else:
        yield from _unloadable(path)


def _unloadable(path: Path) -> Iterator[Flaw]:
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        yield Flaw(f"{path} cannot be read ({error})")
        return
    if any(map(_SCALED.search, names)) or "scaled_fp8" in names:
        remedy = 'name a copy in bf16 or fp16; model.fp8 = "transformer" makes 8 bits of it here'
        yield Flaw(f"{path}: its weights are scaled to 8 bits in a way of their own", remedy)
    elif any(map(_ADAPTER.search, names)):
        yield Flaw(f"{path} is an adapter (LoRA), not a model", "merge it into its model first")
    elif any(name.startswith(_WHOLE) for name in names):
        yield Flaw(
            f"{path} is a whole checkpoint, with text encoder and VAE",
            "make a folder of it once, by diffusers: "
            "StableDiffusionXLPipeline.from_single_file(file).save_pretrained(folder), "
            "or what its pipeline is called; then name the folder",
        )


def denoiser(
    path: Path, base: Path, device: "torch.device", dtype: "torch.dtype"
) -> dict[str, Any]:
    """The part of the pipeline in ``base`` whose weights ``path`` holds, by its name, loaded."""
    import diffusers

    name, class_name = _denoiser_of(base)
    kind: Any = getattr(diffusers, class_name, None)
    if not hasattr(kind, "from_single_file"):
        raise ModelLoadError(
            f"diffusers has no way to read a {class_name} from one file",
            "name a folder in diffusers' layout",
        )
    unlike = ModelLoadError(
        f"{path} is no {class_name} of the sizes that {base} has",
        "name in model.base the model that it was made from",
    )
    try:
        model = kind.from_single_file(
            str(path),
            config=str(base),
            subfolder=name,
            dtype=dtype,
            device=str(device),
            local_files_only=True,
        )
    except (NotImplementedError, ValueError) as error:
        if isinstance(error, NotImplementedError) or "shape" in str(error):
            raise unlike from error  # a weight that the file lacks, or of another shape
        raise
    # What has no place in the model, such as layers too many, is left out without a word.
    has = sum(weight.numel() for weight in model.state_dict().values())
    if _values(path) > has * _FEW_MORE or any(w.is_meta for w in model.state_dict().values()):
        raise unlike
    return {name: model.eval().requires_grad_(False)}


def _values(path: Path) -> int:
    """How many numbers are in the file."""
    with safe_open(path, framework="numpy") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def _denoiser_of(base: Path) -> tuple[str, str]:
    parts = parts_of(base)
    for name in _DENOISERS:
        if name in parts:
            return name, parts[name]
    raise ModelLoadError(
        f"{class_of(base)} in {base} has neither transformer nor unet",
        "name another model.base",
    )
