"""Weights in 8 bits: half the memory and, on cards that multiply in fp8, a faster step.

Each row of a weight, and each token of an activation, has a scale of its own: so a picture does
not depend on its neighbours in a batch, as it would with one scale for all. Plain modules rather
than tensor subclasses: our kernels take them as they are.
"""

from typing import Any

import torch
import torch.nn.functional as F

_FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FP8).max
_SMALLEST_SCALE = 1e-12
_KEPT = ("adaLN_modulation",)  # small, and every value of a block is multiplied with what it gives


class Fp8Linear(torch.nn.Module):
    """In the place of ``linear``, on ``device``. ``multiply``: the product is of fp8 as well;
    otherwise the weight is widened for each call, which any device can do."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self, linear: torch.nn.Linear, device: torch.device, *, multiply: bool = False
    ) -> None:
        super().__init__()
        weight, scale = quantized(linear.weight.detach().to(device))
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = None if linear.bias is None else linear.bias.to(device)
        self.multiplies = multiply

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.multiplies:
            return self.product(*quantized(inputs.flatten(0, -2)), inputs)
        weight = self.weight.to(inputs.dtype) * self.scale.to(inputs.dtype)
        return F.linear(inputs, weight, self.bias)

    def product(
        self, values: torch.Tensor, scales: torch.Tensor, like: torch.Tensor
    ) -> torch.Tensor:
        """Of ``values`` and ``scales`` from ``quantized``; shape and dtype as for ``like``."""
        output: torch.Tensor = torch._scaled_mm(
            values,
            self.weight.t(),
            scale_a=scales,
            scale_b=self.scale.t(),
            bias=self.bias,
            out_dtype=like.dtype,
            use_fast_accum=True,
        )
        return output.view(*like.shape[:-1], -1)


def quantized(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``rows`` (rows × width) in fp8, and what to multiply each row with (rows × 1, fp32)."""
    scale = rows.abs().amax(-1, keepdim=True).float().div(_LARGEST).clamp(min=_SMALLEST_SCALE)
    return (rows.float() / scale).clamp(-_LARGEST, _LARGEST).to(_FP8), scale


def shrink(module: torch.nn.Module, device: torch.device, *, multiply: bool = False) -> None:
    """Put an ``Fp8Linear`` on ``device`` in the place of every linear layer below ``module``
    (but ``_KEPT``), one after the other: the full weights are never there together."""
    for name, child in module.named_children():
        if name in _KEPT:
            continue
        if isinstance(child, torch.nn.Linear):
            setattr(module, name, Fp8Linear(child, device, multiply=multiply))
        else:
            shrink(child, device, multiply=multiply)


def shrink_pipeline(pipeline: Any, device: torch.device, parts: str) -> None:
    """Of a loaded ``ZImagePipeline``: the transformer's blocks and, where ``parts`` is "all", the
    text encoder's layers. What stays as it is goes to ``device`` too."""
    transformer, encoder = pipeline.transformer, pipeline.text_encoder
    for blocks in (transformer.noise_refiner, transformer.context_refiner, transformer.layers):
        shrink(blocks, device, multiply=multiplies(device))
    if parts == "all":
        shrink(encoder.layers, device)
    pipeline.to(device)


def multiplies(device: torch.device) -> bool:
    """Whether ``device`` has matrix units for fp8: Ada, Hopper and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
