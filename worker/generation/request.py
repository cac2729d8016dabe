"""What is asked for: pictures for a caller, and what becomes of them."""

from dataclasses import dataclass
from typing import NamedTuple

from worker.engine.request import Priority
from worker.generation.caller import Caller
from worker.generation.tiling import Tiling
from worker.storage.keys import Key
from worker.types import DrawSpec


@dataclass(frozen=True)
class Output:
    """``quality`` is that of JPEG, WebP. ``inline``: the answer carries the file in base64;
    otherwise it is stored before anybody hears of it. ``gallery``: its row is written behind the
    answer."""

    format: str
    quality: int | None
    inline: bool
    gallery: bool


@dataclass(frozen=True)
class Item:
    """Which picture of which job it is. Whoever holds its lease writes its row, its usage and its
    line of the audit log, together and once, however often it was drawn."""

    job_id: str
    number: int
    image_id: str


class Generation(NamedTuple):
    """One checked request, or one item of a job.

    ``id`` and ``arrived_at`` (seconds since the epoch) as in ``DrawRequest``; ``timeout_s`` counts
    from the arrival, None: no limit of its own. ``client`` is the caller as the audit log names it.
    ``fingerprint`` stands for who asks and for what, ``priority`` is what was asked for.
    ``stream``: somebody reads events, and part of the answer is sent once it is admitted.
    ``resume``: the place of a stream that was cut, or empty. ``tiling``: its one picture is drawn
    in tiles.
    """

    id: str
    arrived_at: float
    caller: Caller
    client: str
    specs: tuple[DrawSpec, ...]
    fingerprint: str
    output: Output
    priority: Priority
    timeout_s: float | None = None
    stream: bool = False
    partial_images: int = 0
    resume: str = ""
    item: Item | None = None
    tiling: Tiling | None = None

    @property
    def drawn_specs(self) -> tuple[DrawSpec, ...]:
        """What the engine draws."""
        return self.specs if self.tiling is None else self.tiling.specs

    def image_id(self, index: int) -> str:
        """Names picture ``index`` for ever."""
        return f"{self.id}-{index}" if self.item is None else self.item.image_id


def priority_of(key: Key | None, asked: int) -> Priority:
    """``asked``, or that of ``key`` where it goes later."""
    return Priority(asked) if key is None else max(Priority(asked), Priority[key.priority.upper()])
