"""Measured seconds of encode, step and decode, and what they predict.

Times are kept by size and rows: unlike the group, the size is known before a prompt is encoded.
"""

from typing import Any, Literal

from worker.engine.queue import Size

Kind = Literal["encode", "step", "decode"]
KINDS: tuple[Kind, ...] = ("encode", "step", "decode")

# Only before anything was measured; the warm-up measures.
_PRIOR_S: dict[Kind, float] = {"encode": 0.05, "step": 0.1, "decode": 0.1}
_WEIGHT = 0.2  # of a new measurement in the running average


class Costs:
    """Running averages. ``max_batch``: most rows of a step where nothing else is known."""

    def __init__(self, max_batch: int = 4) -> None:
        self._max_batch = max_batch
        self._caps: dict[Size, int] = {}
        self._times: dict[Kind, dict[Size, dict[int, float]]] = {kind: {} for kind in KINDS}

    def record(self, kind: Kind, size: Size, rows: int, seconds: float) -> None:
        """One call took ``seconds`` for ``rows`` rows of ``size``."""
        times = self._times[kind].setdefault(size, {})
        before = times.get(rows, seconds)
        times[rows] = before + _WEIGHT * (seconds - before)

    def measured_s(self, kind: Kind, size: Size, rows: int) -> float | None:
        """The running average of exactly this call; None before the first."""
        return self._times[kind].get(size, {}).get(rows)

    def predict_s(self, kind: Kind, size: Size, rows: int) -> float:
        """Seconds of one call; where it was never measured, scaled up from the nearest one."""
        times = self._times[kind]
        if not times:
            return _PRIOR_S[kind]
        near = size if size in times else min(times, key=lambda s: abs(_area(s) - _area(size)))
        scale = 1.0 if kind == "encode" else _area(size) / _area(near)
        count = min(times[near], key=lambda n: (abs(n - rows), n))
        return times[near][count] * scale * max(1.0, rows / count)

    def drawing_s(self, size: Size, rows: int, steps: int) -> float:
        """Seconds of a whole drawing of ``rows`` rows from text to pixels."""
        step_s = self.predict_s("step", size, rows)
        ends_s = self.predict_s("encode", size, rows) + self.predict_s("decode", size, rows)
        return steps * step_s + ends_s

    def batch_cap(self, size: Size) -> int:
        """Most rows that may share one step at ``size``."""
        return min(self._caps.get(size, self._max_batch), self._max_batch)

    def shrink(self, size: Size, rows: int) -> None:
        """More than ``rows`` rows of ``size`` do not fit the memory."""
        self._caps[size] = max(1, min(rows, self.batch_cap(size)))

    def step_ms(self) -> dict[str, float]:
        """Milliseconds of a step by ``WIDTHxHEIGHT/rows``, for people and metrics."""
        return {
            f"{width}x{height}/{rows}": round(seconds * 1000, 3)
            for (width, height), times in self._times["step"].items()
            for rows, seconds in times.items()
        }

    def dump(self) -> dict[str, Any]:
        """Everything learnt, as JSON's types; ``load`` reads it."""
        return {
            "caps": {_name(size): cap for size, cap in self._caps.items()},
            **{
                kind: {_name(size): _texts(times) for size, times in sizes.items()}
                for kind, sizes in self._times.items()
            },
        }

    @classmethod
    def load(cls, data: dict[str, Any], max_batch: int = 4) -> "Costs":
        """What ``dump`` gave; KeyError or ValueError where it is something else."""
        costs = cls(max_batch)
        costs._caps = {_size(name): int(cap) for name, cap in data["caps"].items()}
        for kind in KINDS:
            for name, times in data[kind].items():
                costs._times[kind][_size(name)] = {int(n): float(s) for n, s in times.items()}
        return costs


def _area(size: Size) -> int:
    return size[0] * size[1]


def _name(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _size(name: str) -> Size:
    width, height = name.split("x")
    return int(width), int(height)


def _texts(times: dict[int, float]) -> dict[str, float]:
    return {str(rows): seconds for rows, seconds in times.items()}
