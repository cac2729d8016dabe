"""Waiting for a GPU: one worker loads on a card at a time, and only where its memory is free.

A quick respawn otherwise meets the memory of its dead predecessor, and two workers that start
together each see the room that only one of them can have.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

from worker import log
from worker.bounds import GIB
from worker.file_lock import try_lock
from worker.settings import Settings

_POLL_S = 0.5
_REPORT_S = 10.0


class CardBusy(Exception):
    """The card was not free in time; the message says what held it up."""


FreeBytes = Callable[[], int]


@contextlib.contextmanager
def card(settings: Settings, free_bytes: FreeBytes | None = None, rank: int = 0) -> Iterator[None]:
    """Hold the card while a model loads on it. Does nothing on the CPU. ``rank``: which of several.

    Waits for other workers that load, then for ``vram_limit_gib`` of free memory, for at most
    ``load_allowance_s`` together; then raises ``CardBusy``.
    """
    device = settings.devices[rank]
    if device == "cpu":
        yield
        return
    deadline = time.monotonic() + settings.load_allowance_s
    path = settings.run_dir / f"card-{device.replace('/', '-')}.lock"
    with path.open("a") as lock:
        _wait(lambda: try_lock(lock), deadline, f"another worker to load ({path})")
        if settings.vram_limit_gib is not None:
            measure = free_bytes or (lambda: _free_bytes(torch_device(device, rank)))
            wanted = int(settings.vram_limit_gib * GIB)
            _wait(lambda: measure() >= wanted, deadline, f"{settings.vram_limit_gib:g} GiB free")
        yield


def _wait(done: Callable[[], bool], deadline: float, what: str) -> None:
    report_at = time.monotonic()
    while not done():
        now = time.monotonic()
        if now > deadline:
            raise CardBusy(
                f"waited in vain for {what} on the card: see nvidia-smi for what holds it, "
                "or lower vram_limit_gib"
            )
        if now >= report_at:
            log.event("waiting for the card", what=what, left_s=round(deadline - now, 1))
            report_at = now + _REPORT_S
        time.sleep(_POLL_S)


def _free_bytes(device: str) -> int:
    # Imported here: on a machine without a GPU, nothing of this module needs torch.
    import torch

    if not torch.cuda.is_available():
        return sys.maxsize  # nothing to wait for: loading explains what is missing
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


def torch_device(device: str, rank: int = 0) -> str:
    """Cards named by UUID are the only ones that this process sees, after ``pin``, and in order."""
    return device if device.startswith("c") else f"cuda:{rank}"


def pin(device: str) -> None:
    """Let this process see the cards with the UUIDs in ``device`` alone. Call before torch is
    imported."""
    if device.startswith(("GPU-", "MIG-")):
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    elif device.startswith("cuda"):
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
