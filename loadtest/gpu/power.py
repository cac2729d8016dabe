"""What a card draws: at the limit of its power, only work that is spared makes it quicker."""

import contextlib
import time
from collections.abc import Iterator

import pynvml


@contextlib.contextmanager
def watched(card: str | None) -> Iterator[dict[str, float]]:
    """Filled when the block ends: ``joules``, ``watts`` on average, and ``celsius`` then. ``card``:
    NVML's number of it or its UUID; where it is None, nothing is told. Raises
    ``pynvml.NVMLError``."""
    found: dict[str, float] = {}
    if card is None:
        yield found
        return
    pynvml.nvmlInit()
    by_uuid = card.startswith("GPU-")
    find = pynvml.nvmlDeviceGetHandleByUUID if by_uuid else pynvml.nvmlDeviceGetHandleByIndex
    handle = find(card if by_uuid else int(card))
    began, before_mj = time.perf_counter(), pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    yield found
    joules = (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before_mj) / 1000
    found["joules"] = round(joules, 2)
    found["watts"] = round(joules / (time.perf_counter() - began))
    found["celsius"] = pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
