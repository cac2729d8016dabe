"""The Muon optimiser, a batch of matrices at a time so that it fits into a CUDA graph.

torch.optim.Muon does the same one matrix after another, with thousands of tiny kernels a step, and
takes its rate as a number, which a graph would freeze.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

_MOMENTUM = 0.95
_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_UPDATE_RMS = 0.6  # of an element, over the rate; for AdamW it lies between 0.2 and 1


class Muon(torch.optim.Optimizer):
    """Moves matrices along their momentum, made orthogonal; `lr` is a tensor or a number."""

    def __init__(self, parameters: Iterable[Tensor], lr: Tensor | float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for shape, matrices in _by_shape(group["params"]).items():
                update = orthogonal(torch.stack(self._momenta(matrices)))
                change = update.mul_(-_UPDATE_RMS * max(shape) ** 0.5 * group["lr"])
                torch._foreach_add_(matrices, list(change.unbind()))

    def _momenta(self, matrices: list[Tensor]) -> list[Tensor]:
        """The momentum of each after taking in its gradient, one step ahead (Nesterov)."""
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum"] = torch.zeros_like(matrix)
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        momenta = [self.state[matrix]["momentum"] for matrix in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        return list(torch._foreach_lerp(gradients, momenta, _MOMENTUM))


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (B, M, N) with their singular values moved close to one, in fp32."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT).mT
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16() if matrices.is_cuda else matrices  # slow on a CPU
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    done: Tensor = x.float()
    return done


def _by_shape(parameters: list[Tensor]) -> dict[torch.Size, list[Tensor]]:
    grouped = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            grouped[parameter.shape].append(parameter)
    return grouped
