"""What torch raises, in the words of ``worker.models.base``.

Codes and texts: https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html, where
"the process must be terminated and relaunched" marks those after which no CUDA call succeeds.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from worker.models.base import DevicePoisoned, OutOfMemory

P = ParamSpec("P")
R = TypeVar("R")

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",  # torch's CPU allocator
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "cudaErrorMemoryAllocation",
)
_CUDA = (
    "CUDA error",
    "CUDA driver error",
    "Triton Error [CUDA]",
    "cudaError",
    "device-side assert",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
)
# A call was refused before it ran; the context is unharmed.
_HARMLESS = (
    "invalid argument",
    "invalid configuration argument",
    "invalid device function",
    "no kernel image is available",
    "operation not supported",
    "too many resources requested for launch",
)


def fault_of(error: Exception) -> OutOfMemory | DevicePoisoned | None:
    """What ``error`` means for the device; None: nothing beyond this call.

    A CUDA error that is not known to be harmless counts as poison: a restart costs seconds, a
    worker that fails every request from now on costs much more.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return OutOfMemory(str(error))
    # Only torch's own types: the text of any other error may quote a client's prompt.
    if not isinstance(error, RuntimeError):
        return None
    text = str(error)
    if _any(_OUT_OF_MEMORY, text):
        return OutOfMemory(text)
    cuda = isinstance(error, torch.AcceleratorError) or _any(_CUDA, text)
    return DevicePoisoned(text) if cuda and not _any(_HARMLESS, text) else None


def translate(call: Callable[P, R]) -> Callable[P, R]:
    """Decorator: ``OutOfMemory`` and ``DevicePoisoned`` instead of torch's errors.

    The fault carries no reference to the original error, whose frames hold the tensors that
    filled the memory; by the time it is raised they are freed.
    """

    @wraps(call)
    def translated(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            fault = fault_of(error)
            if fault is None:
                raise
        if isinstance(fault, OutOfMemory):
            torch.cuda.empty_cache()  # without CUDA it does nothing
        raise fault

    return translated


def _any(parts: tuple[str, ...], text: str) -> bool:
    return any(part in text for part in parts)
