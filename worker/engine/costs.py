"""Measured seconds and bytes of encode, image, step and decode, and what they predict. An image
is one that a drawing goes on from, and is encoded alone: one row, whatever its guidance.

Both are kept by size and rows: unlike the group, the size is known before a prompt is encoded.
"""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from typing import Any, Literal

from worker.engine.batch_cap_probe import BatchCapProbe
from worker.engine.queue import Picture, Size, lora_rows_of, rows_of
from worker.engine.recently import Recently

Kind = Literal["encode", "image", "step", "decode"]
KINDS: tuple[Kind, ...] = ("encode", "step", "decode")
"""Those of every drawing."""
_ALL_KINDS: tuple[Kind, ...] = (*KINDS, "image")

_Call = tuple[Kind, Size, int]  # with its rows

# Only before anything was measured; the warm-up measures.
_PRIOR_S: dict[Kind, float] = {"encode": 0.05, "image": 0.1, "step": 0.1, "decode": 0.1}
_LORA_SHARE = 0.15
"""A step of rows that all have adapters takes so much longer, before any was timed."""
_MOST_LORA_SHARE = 4.0
_WEIGHT = 0.2  # of a new measurement in the running average
_HICCUP = 1.5
_HICCUP_WEIGHT = 0.05
"""A call that took so many times the average was held up, unless the next ones are too."""
_NEAR_BEST = 1.03
"""A batch is large enough when a picture in it takes at most so many times the best."""
_KEEP = 1.06
"""A cap in use stays until its pictures take more than so many times the best: times waver."""
_NEAR_BEST_BUSY, _KEEP_BUSY = 1.01, 1.02
"""The same where so many wait that a slower picture makes all who come wait longer."""
_TYPICAL_STEPS = 8
_ALIKE, _ALIKE_S = 0.01, 0.00002
"""Predictions stay while measured times change by no more: each step asks for a dozen."""
_BESIDE_S = 0.0002
"""What a step takes beside the pipeline: choosing, telling, the interpreter's lock. It weighs in
where steps are as short, and then speaks for batches."""


MAX_SIZES = 64
"""So many sizes are known, those that were drawn last: users may ask for thousands, and the others
are predicted from these. Enough that neighbours among them are near in area."""
_MAX_CACHED = 2048  # answers, of a size and a number of rows each


class Costs:
    """Running averages. ``max_batch``: most rows of a step where nothing else is known.

    ``memory_limit``: bytes that this process may use for weights and calls together.
    """

    def __init__(self, max_batch: int = 4, memory_limit: int | None = None) -> None:
        self.memory_limit = memory_limit
        self._max_batch = max_batch
        self._fits: Recently[Size, int] = Recently(MAX_SIZES)
        self._lora_share = _LORA_SHARE
        self._times: dict[Kind, Recently[Size, dict[int, float]]] = {
            kind: Recently(MAX_SIZES) for kind in _ALL_KINDS
        }
        self._resident = 0
        self._peaks: Recently[Size, dict[int, int]] = Recently(MAX_SIZES)
        self._net: dict[Size, dict[int, int]] = {}  # the peaks, less what is resident
        self._rooms: Recently[Size, int] = Recently(MAX_SIZES)  # what they leave room for
        self._predicted: Recently[_Call, float] = Recently(_MAX_CACHED)
        self._told: Recently[_Call, float] = Recently(_MAX_CACHED)  # predictions were made from it
        self._caps: Recently[tuple[Size, int, bool], int] = Recently(_MAX_CACHED)
        # Caps that the last record did not change:
        self._checked: Recently[tuple[Size, int, bool], None] = Recently(_MAX_CACHED)
        self._probes: Recently[Size, BatchCapProbe] = Recently(MAX_SIZES)

    def record(self, kind: Kind, size: Size, rows: int, seconds: float) -> None:
        """One call took ``seconds`` for ``rows`` rows of ``size``."""
        times = self._times[kind].setdefault(size, {})
        self._times[kind].touch(size)
        before = times.get(rows, seconds)
        weight = _HICCUP_WEIGHT if seconds > _HICCUP * before else _WEIGHT
        if self._tell_retrial(kind, size, rows) and _HICCUP * seconds < before:
            weight = 1.0  # it was the former one that was held up
        times[rows] = before + weight * (min(seconds, 4 * before) - before)
        self._renew((kind, size, rows), times[rows])

    def record_call(
        self, kind: Kind, pictures: Sequence[Picture], rows: int, seconds: float
    ) -> None:
        """One call took ``seconds`` for ``pictures`` of one size. What adapters add to a step is
        learnt apart, over all sizes: other steps are predicted without it."""
        size, adapted = pictures[0].size, lora_rows_of(pictures)
        plain_s = self.predict_s(kind, size, rows)
        if kind == "encode" and adapted and self.knows(kind):
            return  # how long its adapters were read says nothing of the next text
        if kind != "step" or not adapted or not self.timed(size) or plain_s <= 0:
            self.record(kind, size, rows, seconds)
            return
        more = min(max(0.0, seconds / plain_s - 1) * rows / adapted, _MOST_LORA_SHARE)
        self._lora_share += _WEIGHT * (more - self._lora_share)

    def call_s(self, kind: Kind, pictures: Sequence[Picture]) -> float:
        """Seconds of one call for ``pictures`` of one size, their adapters included."""
        rows = 1 if kind == "image" else rows_of(pictures)
        seconds = self.predict_s(kind, pictures[0].size, rows)
        if kind != "step":
            return seconds
        return seconds * (1 + self._lora_share * lora_rows_of(pictures) / rows)

    def _renew(self, call: _Call, seconds: float) -> None:
        told = self._told.get(call)
        if told is None or abs(seconds - told) > max(_ALIKE * told, _ALIKE_S):
            self._told[call] = seconds
            self._predicted.clear()
            self._checked.clear()

    def record_peak(self, size: Size, rows: int, peak: int, resident: int) -> None:
        """Drawing ``rows`` rows took ``peak`` bytes, of which ``resident`` without any call."""
        self._resident = resident
        peaks = self._peaks.setdefault(size, {})
        peaks[rows] = max(peak, peaks.get(rows, 0))
        self._forget_rooms()

    def rebase(self, resident: int) -> None:
        """Without any call this process takes ``resident`` bytes; all calls as much more."""
        more = resident - self._resident
        self._resident = resident
        for peaks in self._peaks.values():
            peaks |= {rows: peak + more for rows, peak in peaks.items()}
        self._forget_rooms()

    def take(self, other: "Costs") -> None:
        """Go on from what ``other`` has measured."""
        for kind in _ALL_KINDS:
            for size, times in other._times[kind].items():
                self._times[kind][size] = times
        for size, peaks in other._peaks.items():
            self._peaks[size] = peaks
        self._resident = other._resident
        self._lora_share = other._lora_share
        self._forget_rooms()
        for known in (self._predicted, self._told, self._caps, self._checked):
            known.clear()

    @property
    def measured(self) -> bool:
        """Whether a step was ever timed."""
        return bool(self._times["step"])

    def timed(self, size: Size) -> bool:
        """Whether a step of ``size`` was ever timed."""
        return size in self._times["step"]

    def knows(self, kind: Kind) -> bool:
        """Whether a call of ``kind`` was ever timed, whatever its size, or one that tells of it."""
        return bool(self._times[kind]) or (kind == "image" and self.knows("decode"))

    def predict_s(self, kind: Kind, size: Size, rows: int) -> float:
        """Seconds of one call; between measured rows and sizes in proportion, beyond them as
        much more as there is to do."""
        call = kind, size, rows
        if call not in self._predicted:
            self._predicted[call] = self._predict_s(*call)
        return self._predicted[call]

    def drawing_s(self, size: Size, rows: int, steps: int) -> float:
        """Seconds of a whole drawing of ``rows`` rows from text to pixels."""
        step_s = self.predict_s("step", size, rows)
        ends_s = self.predict_s("encode", size, rows) + self.predict_s("decode", size, rows)
        return steps * step_s + ends_s

    def picture_s(self, size: Size, rows: int, steps: int) -> float:
        """Seconds that a picture of ``rows`` rows takes in a full batch."""
        cap = max(rows, self.batch_cap(size))
        return self.drawing_s(size, cap, steps) * rows / cap

    # How many rows may share a step

    def batch_cap(self, size: Size, backlog: int | None = None, *, busy: bool = False) -> int:
        """Most rows that may share one step at ``size`` where ``backlog`` rows wait for it.

        The smallest number within 3 % of the best seconds per picture among those that fit the
        memory: beyond it a batch only makes everybody wait for the slowest. ``busy``: within 1 %.
        """
        most = self.most_rows(size)
        within = most if backlog is None else max(1, min(most, backlog))
        if not self.compared(size):
            return within
        key = size, within, busy
        if key not in self._checked or key not in self._caps:
            self._check_cap(size, within, busy)
        cap = self._caps[key]
        more = min(within, 2 * cap)
        return more if cap < within and self._again(size, cap, more) else cap

    def most_rows(self, size: Size) -> int:
        """Most rows that could share one step at ``size``, whether that pays or not."""
        most = min(self._fits.get(size, self._max_batch), self._max_batch)
        return max(1, min(most, self.room(size)))

    def _again(self, size: Size, cap: int, more: int) -> bool:
        """Whether ``more`` rows than ``cap`` are to be drawn once more: not where they have been as
        quick, and ``cap`` is but small enough."""
        if self._typical_s(size, more) <= self._typical_s(size, cap):
            return False
        probe = self._probes.setdefault(size, BatchCapProbe(cap))
        probe.cap = cap
        return probe.due

    def _tell_retrial(self, kind: Kind, size: Size, rows: int) -> bool:
        """Whether this call was part of one."""
        probe = self._probes.get(size)
        if probe is None:
            return False
        trial = rows > probe.cap
        if kind == "step":
            probe.stepped(rows)
        elif kind == "decode":
            probe.decoded(rows)
        return trial

    def shrink(self, size: Size, rows: int) -> None:
        """More than ``rows`` rows of ``size`` do not fit the memory."""
        self._fits[size] = max(1, min(rows, self._fits.get(size, self._max_batch)))
        self._caps.clear()
        self._checked.clear()

    def room(self, size: Size) -> int:
        """Most rows of ``size`` that the memory is predicted to hold; 0: not even one."""
        if size not in self._rooms:
            rows = range(self._max_batch, 0, -1)
            self._rooms[size] = next((n for n in rows if self.fits(size, n)), 0)
        return self._rooms[size]

    def _forget_rooms(self) -> None:
        self._net = {}
        self._rooms.clear()

    def fits(self, size: Size, rows: int) -> bool:
        """Whether ``rows`` rows of ``size`` are predicted to stay within the memory."""
        return self.memory_limit is None or self.predict_peak(size, rows) <= self.memory_limit

    def predict_peak(self, size: Size, rows: int) -> int:
        """Bytes in use at the worst moment of drawing ``rows`` rows of ``size``."""
        if not self._peaks:
            return 0
        if not self._net:
            resident = self._resident
            self._net = {s: {n: b - resident for n, b in p.items()} for s, p in self._peaks.items()}
        return self._resident + round(_by_area(self._net, size, rows))

    def _check_cap(self, size: Size, within: int, busy: bool) -> None:
        near, keep = (_NEAR_BEST_BUSY, _KEEP_BUSY) if busy else (_NEAR_BEST, _KEEP)
        about = size, within, busy
        cap = self._caps.get(about)
        if cap is None or not self._near_best(size, cap, within, keep):
            fitting = range(1, within + 1)
            self._caps[about] = next(n for n in fitting if self._near_best(size, n, within, near))
        self._checked[about] = None

    def compared(self, size: Size) -> bool:
        """Whether steps of several numbers of rows were timed. One alone says nothing about
        batches: then they are tried, which measures them."""
        times = self._times["step"]
        return bool(times) and len(times[_nearest(times, size)]) > 1

    def _near_best(self, size: Size, rows: int, within: int, factor: float) -> bool:
        best = min(self._typical_s(size, n) for n in range(1, within + 1))
        return self._typical_s(size, rows) <= factor * best

    def _typical_s(self, size: Size, rows: int) -> float:
        beside_s = _TYPICAL_STEPS * _BESIDE_S
        return (self.drawing_s(size, rows, _TYPICAL_STEPS) + beside_s) / rows

    def _predict_s(self, kind: Kind, size: Size, rows: int) -> float:
        times = self._times[kind]
        if not times and kind == "image":  # about what its decoding takes, which is measured
            return self.predict_s("decode", size, rows)
        if not times:
            return _PRIOR_S[kind]
        if kind == "encode":  # text takes as long at every size
            return _by_rows(times[_nearest(times, size)], rows)
        return _by_area(times, size, rows)

    # For people and files

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
            "caps": {_name(size): cap for size, cap in self._fits.items()},
            "resident": self._resident,
            "lora_share": self._lora_share,
            "peaks": {_name(size): _texts(peaks) for size, peaks in self._peaks.items()},
            **{
                kind: {_name(size): _texts(times) for size, times in sizes.items()}
                for kind, sizes in self._times.items()
            },
        }

    @classmethod
    def load(
        cls, data: dict[str, Any], max_batch: int = 4, memory_limit: int | None = None
    ) -> "Costs":
        """What ``dump`` gave; KeyError or ValueError where it is something else."""
        costs = cls(max_batch, memory_limit)
        for name, cap in data["caps"].items():
            costs._fits[_size(name)] = int(cap)
        costs._resident = int(data["resident"])
        costs._lora_share = float(data.get("lora_share", _LORA_SHARE))
        for name, peaks in data["peaks"].items():
            costs._peaks[_size(name)] = {int(n): int(b) for n, b in peaks.items()}
        for kind in _ALL_KINDS:
            known = data.get(kind, {}) if kind == "image" else data[kind]
            for name, times in known.items():
                costs._times[kind][_size(name)] = {int(n): float(s) for n, s in times.items()}
        return costs


def _by_area(table: dict[Size, dict[int, Any]], size: Size, rows: int) -> float:
    """From the sizes above and below in proportion to their areas, else scaled from the nearest."""
    if size in table:
        return _by_rows(table[size], rows)
    area = _area(size)
    below = max((s for s in table if _area(s) <= area), key=_area, default=None)
    above = min((s for s in table if _area(s) >= area), key=_area, default=None)
    if below is None or above is None or _area(below) == _area(above):
        near = _nearest(table, size)
        return _by_rows(table[near], rows) * area / _area(near)
    low, high = _by_rows(table[below], rows), _by_rows(table[above], rows)
    return low + (high - low) * (area - _area(below)) / (_area(above) - _area(below))


def _by_rows(values: dict[int, Any], rows: int) -> float:
    """Between the measured rows in proportion; below the fewest as much, beyond the most more."""
    if rows in values:
        return float(values[rows])
    known = sorted(values)
    at = bisect_left(known, rows)
    if at == 0:
        return float(values[known[0]])
    low = known[at - 1]
    if at == len(known):
        return float(values[low]) * rows / low
    high = known[at]
    return float(values[low] + (values[high] - values[low]) * (rows - low) / (high - low))


def _nearest(sizes: Collection[Size], size: Size) -> Size:
    if size in sizes:
        return size
    return min(sizes, key=lambda s: abs(_area(s) - _area(size)))


def _area(size: Size) -> int:
    return size[0] * size[1]


def _name(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _size(name: str) -> Size:
    width, height = name.split("x")
    return int(width), int(height)


def _texts(values: dict[int, Any]) -> dict[str, Any]:
    return {str(rows): value for rows, value in values.items()}
