"""What a device has and uses of memory. Without a GPU, nothing is known and nothing is limited."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from worker.models.base import ModelInfo

CONTEXT_GIB = 1.0
"""What CUDA itself holds of a card, and torch's limit does not count: 0.73 GiB on an H100, and some
MiB for each graph."""
GIB = 1 << 30
_RESERVE = GIB


class Memory(Protocol):
    """``limit_bytes``: what weights and calls may use together; None: unknown."""

    @property
    def device_name(self) -> str: ...
    @property
    def driver(self) -> str: ...
    @property
    def limit_bytes(self) -> int | None: ...
    @property
    def resident_bytes(self) -> int: ...
    def reset_peak(self) -> None: ...
    def peak_bytes(self) -> int | None: ...
    def usage(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class NoMemory:
    """A CPU, or a pipeline without a device."""

    device_name: str = ""
    driver: str = ""
    limit_bytes: int | None = None
    resident_bytes: int = 0

    def reset_peak(self) -> None: ...
    def peak_bytes(self) -> int | None:
        return None

    def usage(self) -> Mapping[str, int]:
        return {}


@dataclass(frozen=True)
class CudaMemory:
    """The present CUDA device, in whose process the model is loaded. ``resident_bytes``: what it
    takes without any call; ``exchange_bytes``: what torch's allocator does not know of;
    ``lora_bytes``: what is left free for adapters."""

    vram_limit_gib: float | None
    resident_bytes: int
    exchange_bytes: int = 0
    lora_bytes: int = 0

    @property
    def device_name(self) -> str:
        import torch

        return torch.cuda.get_device_name()

    @property
    def driver(self) -> str:
        import torch

        return f"CUDA {torch.version.cuda}"

    @property
    def limit_bytes(self) -> int | None:
        import torch

        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        limit = total if self.vram_limit_gib is None else int(self.vram_limit_gib * GIB)
        own_bytes = self.exchange_bytes + self.lora_bytes
        return min(limit, total) - int(CONTEXT_GIB * GIB) - own_bytes

    def reset_peak(self) -> None:
        import torch

        torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int | None:
        import torch

        return int(torch.cuda.max_memory_allocated())

    def usage(self) -> Mapping[str, int]:
        """Bytes now: allocated, reserved, limit. From any thread; does not touch the device."""
        import torch

        return {
            "allocated": int(torch.cuda.memory_allocated()),
            "reserved": int(torch.cuda.memory_reserved()),
            "limit": self.limit_bytes or 0,
        }


def room_of(device: Any) -> Callable[[], int] | None:
    """What torch's ``device`` has left for a call, beside a reserve for graphs and for what lies
    between pieces; None where nothing is known."""
    if device.type != "cuda":
        return None
    import torch

    total = torch.cuda.get_device_properties(device).total_memory

    def room_bytes() -> int:
        limit = int(total * torch.cuda.get_per_process_memory_fraction(device))
        limit = min(limit, total - int(CONTEXT_GIB * GIB))
        return limit - int(torch.cuda.memory_allocated(device)) - _RESERVE

    return room_bytes


def memory_of(info: ModelInfo, vram_limit_gib: float | None) -> Memory:
    """The memory of the device that the model of ``info`` was just loaded on."""
    if info.device == "cpu" or "torch" not in sys.modules:
        return NoMemory()
    import torch

    resident = int(torch.cuda.memory_allocated())
    lora_bytes = info.loras.stored_bytes if info.loras else 0
    return CudaMemory(vram_limit_gib, resident, info.exchange_bytes, lora_bytes)
