"""Real faults of a GPU, from inside a worker: put this folder on the worker's PYTHONPATH.

A file ``<worker>.<fault>`` in the folder that ``GPU_FAULTS`` names injects it once: ``memory``
takes all that torch may still allocate, for ten seconds; ``assert`` indexes out of bounds in a
kernel.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

HOLD_S = 10.0
_POLL_S = 0.1


def memory(device: str) -> None:
    """Take the card's memory in ever smaller pieces."""
    import torch

    taken, piece = [], 1 << 33
    end = time.monotonic() + HOLD_S
    while time.monotonic() < end:
        try:
            taken.append(torch.empty(piece, dtype=torch.uint8, device=device))
        except torch.OutOfMemoryError:
            piece = max(piece // 2, 1 << 20)
            time.sleep(0.001)


def assertion(device: str) -> None:
    """A device-side assert: no later CUDA call of this process succeeds."""
    import torch

    torch.zeros(4, device=device)[torch.full((1,), 1 << 20, device=device)]


FAULTS: dict[str, Callable[[str], None]] = {"memory": memory, "assert": assertion}


def watch(folder: Path, worker: str) -> None:
    """Until the process ends."""
    while True:
        time.sleep(_POLL_S)
        for name, fault in FAULTS.items():
            asked = folder / f"{worker}.{name}"
            if asked.exists():
                asked.unlink()
                sys.stderr.write(f"injecting {name}\n")
                fault(f"cuda:{worker.partition('-')[2] or 0}")  # "w1-1" helps w1 on its second card


if "GPU_FAULTS" in os.environ and "ZIMAGE_NAME" in os.environ:
    arguments = Path(os.environ["GPU_FAULTS"]), os.environ["ZIMAGE_NAME"]
    threading.Thread(target=watch, args=arguments, daemon=True).start()
