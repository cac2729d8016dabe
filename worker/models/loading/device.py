"""The device of this process, and how much of its memory it may have. Imports torch alone."""

import os
import re

import torch

from worker.models.loading.folder import ModelLoadError
from worker.models.memory import CONTEXT_GIB, GIB


def claim_device(name: str, vram_limit_gib: float | None = None, rank: int = 0) -> torch.device:
    """The device of this process from now on, its memory limit set.

    A UUID (``GPU-…``, ``MIG-…``) means that the parent made that card the only visible one, by
    ``CUDA_VISIBLE_DEVICES``, or that of ``rank`` among several.
    """
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?|(?:GPU|MIG)-[\w/-]+", name)
    if match is None:
        raise ModelLoadError(f"device {name!r} is unknown", "give cpu, cuda:N, GPU-… or MIG-…")
    index = int(match[1] or 0) if name.startswith("cuda") else rank
    # cuBLAS reads it when it starts; without it, reproducible samples are refused.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not torch.cuda.is_available():
        raise ModelLoadError(
            f"device {name}: CUDA is not available to torch {torch.__version__}",
            "check nvidia-smi and that torch is built for CUDA, or set device to cpu",
        )
    if index >= torch.cuda.device_count():
        raise ModelLoadError(
            f"device {name}: only {torch.cuda.device_count()} visible", "see nvidia-smi -L"
        )
    torch.cuda.set_device(index)
    device = torch.device("cuda", index)
    limit_memory(device, vram_limit_gib)
    return device


def limit_memory(
    device: torch.device, vram_limit_gib: float | None, exchange_bytes: int = 0
) -> None:
    """Let torch's allocator have what the limit leaves it."""
    if vram_limit_gib is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        fraction = memory_fraction(vram_limit_gib - exchange_bytes / GIB, total)
        torch.cuda.set_per_process_memory_fraction(fraction, device)


def memory_fraction(limit_gib: float, total_bytes: int) -> float:
    """Share of the card for torch's allocator under a limit that includes the CUDA context."""
    usable = limit_gib - CONTEXT_GIB
    if not 0 < usable * GIB <= total_bytes:
        raise ModelLoadError(
            f"vram_limit_gib {limit_gib} does not suit a card of {total_bytes / GIB:.1f} GiB",
            f"set it over {CONTEXT_GIB} and at most the card's memory, or leave it out",
        )
    return usable * GIB / total_bytes


def dtype_for(name: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 on a GPU, float32 on the CPU, which is slow or wrong in anything else."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else "bfloat16"
    dtype: torch.dtype = getattr(torch, name)
    return dtype
