"""What goes into the engine and what comes out of it."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from worker.types import DrawSpec, Pixels


class Priority(IntEnum):
    """Smaller goes first, within a step."""

    INTERACTIVE = 0
    BATCH = 1


class DrawRequest(NamedTuple):
    """One request: one or more pictures that are answered together.

    ``id`` and ``arrived_at`` (seconds since the epoch) come from nginx and stay the same over
    replays: the id names the request, the arrival orders the queue. A stream that was cut and sent
    again has the arrival of the first one. ``key`` is who asks, for fairness. ``fingerprint``
    stands for key and normalised body: the same for a resubmission.
    ``partial_images`` is how many previews of each picture are wanted. ``exclusive``: this request
    was in a step that killed a worker and must share its steps with nobody. ``patience``: its calls
    may take so many times what others may. ``watched``: somebody reads its position as it changes.
    ``followed``: somebody reads its steps; whoever watches does.
    """

    id: str
    specs: tuple[DrawSpec, ...]
    arrived_at: float
    key: str = "local"
    fingerprint: str = ""
    priority: Priority = Priority.INTERACTIVE
    deadline: float | None = None  # seconds since the epoch
    partial_images: int = 0
    exclusive: bool = False
    patience: float = 1.0
    watched: bool = True
    followed: bool = False


@dataclass(frozen=True)
class Queued:
    """Still waiting: ``position`` requests are ahead (0: next), about ``wait_s`` to go. Its second
    picture may begin ``picture_s`` after the first, and so on; None where nobody looked ahead."""

    position: int
    wait_s: float
    picture_s: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Stepped:
    """Picture ``image_index`` has done ``step`` of ``steps``; about ``remaining_s`` to go."""

    image_index: int
    step: int
    steps: int
    remaining_s: float


@dataclass(frozen=True)
class Partial:
    """Preview number ``partial_index`` of picture ``image_index``."""

    image_index: int
    partial_index: int
    pixels: Pixels = field(repr=False)


NO_PIXELS: Pixels = np.empty((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class Drawn:
    """Picture ``image_index`` is done. Whoever makes a file of it tells on one of ``NO_PIXELS``:
    nobody holds megabytes that nobody reads."""

    image_index: int
    spec: DrawSpec
    pixels: Pixels = field(repr=False)
    queue_ms: float
    inference_ms: float  # from first start to decoded
    batch_size: int  # most pictures that shared a step with it, itself included
    device_s: float = 0.0  # its share, by rows, of the calls that it was in


Event = Queued | Stepped | Partial | Drawn
