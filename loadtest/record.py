"""One request as its user saw it, as a line of JSON."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Result = Literal["ok", "refused", "failed", "left"]
"""refused: 503 with an honest Retry-After. left: the user closed the tab."""


@dataclass
class Record:
    at: float
    """Seconds since the epoch at which it was sent."""
    user: str
    kind: str
    """draw, stream or upload; of a mixed load also what it is drawn from."""
    seconds: float = 0.0
    result: Result = "failed"
    status: int = 0
    worker: str = ""
    queue_s: float | None = None
    draw_s: float | None = None
    pictures: int = 0
    resumed: int = 0
    """How often a cut stream was asked for again."""
    request_id: str = ""
    error: str = ""
    retry_after_s: float | None = None
    """Of a refusal: when to come again."""
    refused: int = 0
    """How often it was told to come again before this answer, and did."""

    @property
    def end(self) -> float:
        return self.at + self.seconds


def write(path: Path, record: Record) -> None:
    """Append one line; whole lines also when several processes write."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")


def read(paths: Iterable[Path]) -> list[Record]:
    """In the order in which they were sent."""
    texts = (path.read_text(encoding="utf-8") for path in paths if path.exists())
    found = (Record(**json.loads(line)) for text in texts for line in text.splitlines())
    return sorted(found, key=lambda record: record.at)
