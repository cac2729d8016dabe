"""Geometry of the charts: times and values to coordinates. Drawing is the templates' part."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest import measures
from loadtest.record import Record

WIDTH, LEFT, RIGHT = 1000, 56, 12


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """Values from 0 to ``top`` over ``length`` pixels."""

    top: float
    length: float
    step: float

    @classmethod
    def to(cls, largest: float, length: float, ticks: int = 4) -> "Axis":
        """An axis with round ticks that holds ``largest``."""
        step = round_step(max(largest, 1e-9) / ticks)
        return cls(step * math.ceil(max(largest, 1e-9) / step), length, step)

    def place(self, value: float) -> float:
        """Pixels from the zero line."""
        return round(min(max(value, 0.0), self.top) / self.top * self.length, 1)

    @property
    def ticks(self) -> list[Tick]:
        count = round(self.top / self.step)
        return [Tick(self.place(k * self.step), f"{k * self.step:g}") for k in range(count + 1)]


@dataclass(frozen=True)
class TimeAxis:
    start: float
    end: float

    def x(self, at: float) -> float:
        share = (at - self.start) / max(self.end - self.start, 1e-9)
        return round(LEFT + min(max(share, 0.0), 1.0) * (WIDTH - LEFT - RIGHT), 1)

    @property
    def ticks(self) -> list[Tick]:
        length = self.end - self.start
        step = next((s for s in _TIME_STEPS if length / s <= 10), _TIME_STEPS[-1])
        return [
            Tick(self.x(self.start + k * step), clock(k * step))
            for k in range(int(length / step) + 1)
        ]


_TIME_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)


def round_step(raw: float) -> float:
    """The next of 1, 2, 5, 10, 20 … that is not smaller."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= raw * 0.999)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def path(points: Sequence[tuple[float, float]]) -> str:
    """An SVG path through ``points``."""
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points) if points else ""


@dataclass(frozen=True)
class Bucket:
    """A stretch of time: pictures a second, and p50 and p95 of requests that ended in it."""

    at: float
    pictures_per_s: float
    p50_s: float
    p95_s: float


def buckets(records: Sequence[Record], axis: TimeAxis, count: int = 60) -> list[Bucket]:
    length = max((axis.end - axis.start) / count, 1.0)
    groups: dict[int, list[Record]] = {}
    for record in records:
        if record.result == "ok":
            groups.setdefault(int((record.end - axis.start) / length), []).append(record)
    found = []
    for k in range(math.ceil((axis.end - axis.start) / length)):
        ended = groups.get(k, [])
        latencies = [record.seconds for record in ended]
        found.append(
            Bucket(
                axis.start + (k + 0.5) * length,
                sum(record.pictures for record in ended) / length,
                measures.percentile(latencies, 0.5),
                measures.percentile(latencies, 0.95),
            )
        )
    return found
