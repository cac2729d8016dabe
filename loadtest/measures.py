"""Figures of a run from what users and observer saw. Pure."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from loadtest.chaos import Injected
from loadtest.faults.catalogue import FAULTS
from loadtest.observer import Sample
from loadtest.record import Record

_CUT_S = 1.0
"""A fault that users see is over so soon."""


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of all do not exceed; nan of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def of_users(records: Sequence[Record], duration_s: float) -> dict[str, float]:
    """Counts, latency of answered requests in seconds, pictures a second."""
    ok = [r for r in records if r.result == "ok"]
    latencies = [r.seconds for r in ok]
    queued = [r.queue_s for r in ok if r.queue_s is not None]
    counts = {
        result: float(sum(r.result == result for r in records))
        for result in ("failed", "refused", "left")
    }
    answered = len(records) - counts["left"]
    return {
        "requests": float(len(records)),
        **counts,
        "resumed_streams": float(sum(r.resumed > 0 for r in records)),
        "refused_share": counts["refused"] / answered if answered else math.nan,
        "p50_s": percentile(latencies, 0.50),
        "p95_s": percentile(latencies, 0.95),
        "p99_s": percentile(latencies, 0.99),
        "longest_s": max(latencies, default=math.nan),
        "queue_p50_s": percentile(queued, 0.50),
        "queue_p99_s": percentile(queued, 0.99),
        "requests_per_s": len(ok) / duration_s,
        "pictures_per_s": sum(r.pictures for r in ok) / duration_s,
    }


def by_kind(records: Sequence[Record], kinds: Iterable[str]) -> dict[str, float]:
    """How many of each of ``kinds`` were answered."""
    answered = Counter(r.kind for r in records if r.result == "ok")
    return {f"answered_{kind}": float(answered[kind]) for kind in kinds}


def of_pieces(
    records: Sequence[Record], start: float, every_s: float
) -> list[tuple[float, float, dict[str, float]]]:
    """Start, end and figures of every ``every_s`` since ``start``: latency of what was sent in it,
    rates of what was answered in it. The last piece goes on until everything is answered."""
    last_sent = max((r.at for r in records), default=start)
    last = max((r.end for r in records), default=start)
    pieces = []
    for k in range(int((last_sent - start) / every_s) + 1):
        begins, ends = start + k * every_s, start + (k + 1) * every_s
        sent = [r for r in records if begins <= r.at < ends]
        if last_sent < ends:
            ends = last + 1e-3
        answered = [r for r in records if begins <= r.end < ends]
        rates = of_users(answered, ends - begins)
        figures = of_users(sent, ends - begins)
        figures |= {name: rates[name] for name in ("requests_per_s", "pictures_per_s")}
        pieces.append((begins, ends, figures))
    return pieces


def of_faults(faults: Sequence[Injected]) -> dict[str, float]:
    """How soon workers left the pool and were back, in seconds."""
    at_once = [
        f.out_s
        for f in faults
        if f.out_s is not None and FAULTS[f.name].leaves and FAULTS[f.name].at_once
    ]
    hangs = [f for f in faults if f.out_s is not None and not FAULTS[f.name].at_once]
    overdue = [max(0.0, (f.out_s or 0.0) - f.allowance_s) for f in hangs]
    backs = [f.back_s for f in faults if f.back_s is not None]
    found = {
        "faults": float(len(faults)),
        "unhealed_faults": float(sum(not f.healed for f in faults)),
        "out_s": max(at_once, default=math.nan),
        "hang_out_s": max((f.out_s or 0.0 for f in hangs), default=math.nan),
        "hang_overdue_s": max(overdue, default=math.nan),
        "back_s": max(backs, default=math.nan),
    }
    # What did not happen has no figure: no hang, no time until it was noticed.
    return {name: value for name, value in found.items() if not math.isnan(value)}


def apart(records: Sequence[Record], faults: Sequence[Injected]) -> dict[str, float]:
    """Failed requests, but those that a fault cut of which users may see something."""
    seen = [fault.at for fault in faults if not FAULTS[fault.name].unseen]
    failed = [r for r in records if r.result == "failed"]
    cut = sum(any(r.at <= at + _CUT_S and r.end >= at for at in seen) for r in failed)
    counts = {"failed": float(len(failed) - cut)}
    return counts | ({"cut": float(cut)} if seen else {})


def replayed(access_log: Path, since: float) -> int:
    """Requests that nginx sent on to another worker, or once more to the only one: replays, and
    closed gates that it tried."""
    count = 0
    with access_log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            entry = json.loads(line)
            # "unix:a, unix:b : unix:a": two workers, and a further turn.
            # Whoever answers 421 only reads for which of several models it is.
            further = entry["upstream_addr"].count(", ") + entry["upstream_addr"].count(" : ")
            handed_on = entry.get("upstream_status", "").count("421")
            count += entry["end"] >= since and further > handed_on
    return count


def fitted(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Both ends of the line through the last three quarters of ``points`` (caches fill in the
    first) by least squares; nothing of nothing."""
    kept = points[len(points) // 4 :]
    if not kept:
        return []
    mean_x = sum(x for x, _ in kept) / len(kept)
    mean_y = sum(y for _, y in kept) / len(kept)
    spread = sum((x - mean_x) ** 2 for x, _ in kept)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in kept) / spread if spread else 0.0
    return [(x, mean_y + slope * (x - mean_x)) for x in (kept[0][0], kept[-1][0])]


def growth(points: Sequence[tuple[float, float]]) -> float:
    """What the fitted line gains from its first end to its last."""
    ends = fitted(points)
    return ends[-1][1] - ends[0][1] if ends else 0.0


def of_resources(resources: dict[str, list[Sample]]) -> dict[str, float]:
    """The worst growth of any program over the run, by the fitted line."""

    def worst(what: str) -> float:
        return max(
            (growth([(s.at, getattr(s, what)) for s in samples]) for samples in resources.values()),
            default=math.nan,
        )

    return {
        "memory_growth_mib": worst("rss_mib"),
        "files_growth": worst("files"),
        "threads_growth": worst("threads"),
    }
