"""What the engine may take on, and how long it may take."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The settings of the same names; see ``worker/settings.py``."""

    max_queued_requests: int = 64
    max_queue_wait_s: float = 60.0
    max_batch: int = 4  # rows of one step
    step_allowance_s: float = 5.0
    compile_allowance_s: float = 600.0
