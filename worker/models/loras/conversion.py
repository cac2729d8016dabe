"""From what trainers write to one form: by module of diffusers' model, A (rank × inputs) and B
(outputs × rank), whose product is added as it is. Imports torch and diffusers.

Names of PEFT, Kohya and ComfyUI are mapped by diffusers' own converters.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from worker.models.loras.head import MAX_ELEMENTS, Head, UnusableLora

Layers = Mapping[str, tuple[int, int]]
"""Inputs and outputs of a model's linear layers, by name."""

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_PREFIXES = ("base_model.model.", "transformer.")
_OUT = re.compile(r"\.attention\.out\.")
_MODULE = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


class Pair(NamedTuple):
    """What is added to the outputs of one layer: B A times its inputs."""

    a: torch.Tensor
    b: torch.Tensor


def converted(head: Head, values: bytes, layers: Layers | None) -> dict[str, Pair]:
    """By module. ``values``: what follows ``head`` in the file; ``layers``: of the model that it is
    for, None: of any. Raises ``UnusableLora``."""
    state = {
        name: torch.frombuffer(
            bytearray(values[tensor.begin : tensor.end]), dtype=DTYPES[tensor.dtype]
        ).view(tensor.shape)
        for name, tensor in head.tensors.items()
    }
    scaling = _Scaling.of(head.metadata)
    pairs = _split(_paired(_diffusers_names(state)))
    if layers is not None:
        require_fits({module: shape_of(pair) for module, pair in pairs.items()}, layers)
    scaled = {module: scaling.applied(module, pair) for module, pair in pairs.items()}
    for module, pair in scaled.items():
        if not (pair.a.isfinite().all() and pair.b.isfinite().all()):
            raise UnusableLora(f"{module} has values that are no numbers", "train or copy it again")
    return scaled


def shape_of(pair: Pair) -> tuple[int, int]:
    """Inputs and outputs of the layer that it is for."""
    return pair.a.shape[1], pair.b.shape[0]


def require_fits(shapes: Layers, layers: Layers) -> None:
    """Raise ``UnusableLora`` unless each module is a linear layer of that shape."""
    for module, shape in shapes.items():
        if module not in layers:
            raise UnusableLora(
                f"the model has no layer {module[:120]}", "use an adapter for this cell's model"
            )
        if layers[module] != shape:
            (has_in, has_out), (given_in, given_out) = layers[module], shape
            raise UnusableLora(
                f"{module} takes {has_in} values and gives {has_out}, here {given_in} and "
                f"{given_out}",
                "use an adapter for this cell's model",
            )


def layers_of(transformer: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """Linear layers of a model, whatever their numbers are kept in."""
    return {
        name: (module.weight.shape[1], module.weight.shape[0])
        for name, module in transformer.named_modules()
        if hasattr(module, "bias") and getattr(module, "weight", None) is not None
        if module.weight.ndim == 2
    }


def layers_of_folder(folder: Path | None) -> dict[str, tuple[int, int]]:
    """Of the Z-Image in ``folder`` (None: of Z-Image-Turbo's sizes) by its configuration alone."""
    from diffusers import ZImageTransformer2DModel

    config = {} if folder is None else json.loads((folder / "transformer/config.json").read_text())
    with torch.device("meta"):
        return layers_of(ZImageTransformer2DModel.from_config(config))


def _diffusers_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from diffusers.loaders.lora_pipeline import ZImageLoraLoaderMixin

    # The converters rename an alpha so, but not the sides that it belongs to.
    plain = {
        _OUT.sub(".attention.to_out.0.", _without_prefix(name)): tensor
        for name, tensor in state.items()
    }
    try:
        found: Any = ZImageLoraLoaderMixin.lora_state_dict(plain)
    except (ValueError, KeyError, RuntimeError, IndexError) as error:
        what = str(error).strip().splitlines() or [type(error).__name__]
        raise UnusableLora(
            f"diffusers cannot read its names ({what[0][:200]})",
            "use one in the names of PEFT, Kohya or ComfyUI",
        ) from error
    return {_without_prefix(name): tensor for name, tensor in found.items()}


def _without_prefix(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _paired(state: Mapping[str, torch.Tensor]) -> dict[str, Pair]:
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        match = _MODULE.fullmatch(name)
        if match is None:
            raise UnusableLora(f"{name[:120]} is no part of a LoRA of Z-Image", "use another file")
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    pairs = {}
    for module, found in sides.items():
        if len(found) != 2 or found["A"].shape[0] != found["B"].shape[1]:
            raise UnusableLora(f"the two sides of {module[:120]} do not match", "copy it again")
        pairs[module] = Pair(found["A"], found["B"])
    return pairs


def _split(pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    """Without the names of Z-Image's authors, who have one layer for query, key and value."""
    found: dict[str, Pair] = {}
    for module, pair in pairs.items():
        block, _, last = module.rpartition(".")
        if last == "qkv" and len(pair.b) % 3 == 0:
            for name, part in zip("qkv", pair.b.chunk(3), strict=True):
                found[f"{block}.to_{name}"] = Pair(pair.a, part.contiguous())
        else:
            found[module] = pair
    if sum(a.numel() + b.numel() for a, b in found.values()) > MAX_ELEMENTS:
        raise UnusableLora("it has too many values", "use one of a smaller rank")
    return found


class _Scaling(NamedTuple):
    """What PEFT multiplies with, which diffusers writes into the head; else the file's own alphas
    are all, and the converters took them in."""

    alpha: float | None
    patterns: Mapping[str, float]
    by_root: bool

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> "_Scaling":
        if "lora_adapter_metadata" not in metadata:
            return cls(None, {}, False)
        try:
            said = {
                key.removeprefix("transformer."): value
                for key, value in json.loads(metadata["lora_adapter_metadata"]).items()
            }
            alpha = said.get("lora_alpha")
            patterns = {str(k): float(v) for k, v in (said.get("alpha_pattern") or {}).items()}
            alpha = None if alpha is None else float(alpha)
        except (ValueError, TypeError, AttributeError) as error:
            raise UnusableLora(
                "its lora_adapter_metadata cannot be read", "save it again"
            ) from error
        if said.get("use_dora"):
            raise UnusableLora("it is a DoRA", "only LoRAs of the transformer are used")
        return cls(alpha, patterns, bool(said.get("use_rslora")))

    def applied(self, module: str, pair: Pair) -> Pair:
        alpha = next(
            (v for k, v in self.patterns.items() if module == k or module.endswith(f".{k}")),
            self.alpha,
        )
        if alpha is None:
            return pair
        rank = pair.a.shape[0]
        # As small a change of the values' type as the converters' own.
        return Pair(pair.a * (alpha / (math.sqrt(rank) if self.by_root else rank)), pair.b)
