"""Memory and use of the workers' GPUs, from NVIDIA's management library.

A thread of its own asks: a driver that hangs stops that thread and not the guard, and the readings
grow stale, which is how a lost GPU looks as well.
"""

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pynvml

_INTERVAL_S = 5.0
_STALE_S = 30.0
_log = logging.getLogger("guard")


@dataclass(frozen=True)
class Gpu:
    """``None`` where the device does not tell: a MIG slice has no use and no temperature."""

    memory_used_bytes: int
    memory_bytes: int
    utilization_ratio: float | None
    temperature_c: int | None


class Gpus:
    """``devices``: UUIDs of GPUs (``GPU-…``) and slices (``MIG-…``), of a worker on several with
    commas between them; without any, nothing runs."""

    def __init__(self, devices: Iterable[str]) -> None:
        each = {device for several in devices for device in several.split(",")}
        self.devices = tuple(sorted(d for d in each if d.startswith(("GPU-", "MIG-"))))
        self._read: dict[str, tuple[float, Gpu]] = {}
        self._complained: set[str] = set()

    def start(self) -> None:
        if self.devices:
            threading.Thread(target=self._ask_for_ever, name="gpus", daemon=True).start()

    def get(self, device: str) -> Gpu | None:
        """The last reading; None where there is none of the last half minute. Of several devices:
        all their memory, and the busiest and the warmest."""
        found = [self._get(each) for each in device.split(",")]
        known = [gpu for gpu in found if gpu is not None]
        return _together(known) if len(known) == len(found) else None

    def _get(self, device: str) -> Gpu | None:
        at, gpu = self._read.get(device, (0.0, None))
        return gpu if time.monotonic() - at < _STALE_S else None

    def _ask_for_ever(self) -> None:
        while True:
            try:
                pynvml.nvmlInit()
                while True:
                    self._ask_all()
                    time.sleep(_INTERVAL_S)
            except pynvml.NVMLError as error:  # the driver is away: is being updated, perhaps
                self._complain("driver", error)
                time.sleep(_INTERVAL_S)

    def _ask_all(self) -> None:
        for device in self.devices:
            try:
                self._read[device] = time.monotonic(), read_gpu(device)
                self._complained.discard(device)
            except (pynvml.NVMLError_Uninitialized, pynvml.NVMLError_DriverNotLoaded):
                raise
            except pynvml.NVMLError as error:
                self._complain(device, error)

    def _complain(self, what: str, error: Exception) -> None:
        if what not in self._complained:  # once, not every five seconds
            self._complained.add(what)
            _log.warning("cannot ask %s: %s", what, error)


def _together(gpus: Sequence[Gpu]) -> Gpu:
    if len(gpus) == 1:
        return gpus[0]
    return Gpu(
        sum(gpu.memory_used_bytes for gpu in gpus),
        sum(gpu.memory_bytes for gpu in gpus),
        max((g.utilization_ratio for g in gpus if g.utilization_ratio is not None), default=None),
        max((g.temperature_c for g in gpus if g.temperature_c is not None), default=None),
    )


def read_gpu(device: str) -> Gpu:
    """Raises ``NVMLError``: also for a GPU that fell off the bus."""
    handle = pynvml.nvmlDeviceGetHandleByUUID(device)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(int(memory.used), int(memory.total), _utilization(handle), _temperature(handle))


def _utilization(handle: object) -> float | None:
    try:
        return float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
    except pynvml.NVMLError_NotSupported:
        return None


def _temperature(handle: object) -> int | None:
    try:
        return int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_InvalidArgument):
        return None
