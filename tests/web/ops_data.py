"""What the guard of a busy cell with two cards would have written, six hours long."""

import math
from typing import Any

from deploy.guard.history import COLUMNS, INTERVAL_S

CARDS = {"w1": 0, "w2": 0, "w3": 1, "w4": 1}
HOURS = 6


def cell(now: float, **changes: Any) -> dict[str, Any]:
    workers = [_worker(name, card, now) for name, card in CARDS.items()]
    workers[2] |= {
        "state": "loading",
        "open": False,
        "phase": "load",
        "since": now - 9,
        "queued": 0,
    }
    workers[2] |= {"running": 0, "restarts": 3, "in_step": 0, "predicted_wait_s": 0}
    fault = "killed: hung in a step: 5.2 s (limit 5.0 s)"
    workers[2]["last_fault"] = {"at": now - 15, "what": fault}
    state = {
        "at": now,
        "name": "studio",
        "ready": True,
        "alarms": [],
        "pool": {"open": 3, "of": 4},
        "workers": workers,
        "events": [
            {"at": now - 3600, "worker": None, "what": "guard started"},
            {"at": now - 16, "worker": "w3", "what": "out: silent for 0.5 s"},
            {"at": now - 15, "worker": "w3", "what": f"kill 4711: {fault[8:]}"},
            {"at": now - 9, "worker": "w3", "what": "process 4800 is there"},
        ],
    }
    return state | changes


def front(now: float) -> dict[str, Any]:
    """What the guard of a front writes besides, of two hosts, one of which is lost."""
    lost = {"since": now - 14, "open": False, "why": "silent for 14.2 s", "silent_s": 14.2}
    a = _host("gpu1", "10.0.0.7", "ready", 4) | {"since": now - 7200}
    b = _host("gpu2", "10.0.0.8", "lost", 0) | lost
    workers = [_worker(f"gpu1/{name}", card, now) for name, card in CARDS.items()]
    return {"hosts": [a, b], "workers_of_hosts": workers, "workers": []}


def _host(name: str, address: str, state: str, ready: int) -> dict[str, Any]:
    return {
        "id": name,
        "name": name,
        "address": f"{address}:7862",
        "link": "h1",
        "state": state,
        "open": True,
        "why": "ready",
        "silent_s": 0.1,
        "wait_s": 2.4 if ready else None,
        "workers": 4,
        "ready": ready,
    }


def _worker(name: str, card: int, now: float) -> dict[str, Any]:
    return {
        "name": name,
        "pid": 4000 + card,
        "state": "busy",
        "since": now - 4000,
        "open": True,
        "phase": "step",
        "phase_age_s": 0.084,
        "in_step": 2,
        "steps": 91_234,
        "queued": 3,
        "running": 2,
        "predicted_wait_s": 4.2,
        "restarts": 0,
        "last_exit": None,
        "last_fault": None,
        "device": f"GPU-5f0c7a3e-0000-0000-0000-00000000000{card}",
        "device_name": "NVIDIA H100 80GB HBM3",
        "resident_bytes": 3_400_000_000,
        "gpu": {
            "memory_used_bytes": 43 << 30,
            "memory_bytes": 80 << 30,
            "utilization_ratio": 0.97,
            "temperature_c": 63,
        },
    }


def alarm(name: str, now: float, worker: str | None = None, text: str = "") -> dict[str, Any]:
    return {"name": name, "worker": worker, "since": now - 42, "text": text}


def history(now: float) -> dict[str, Any]:
    began = now - HOURS * 3600
    count = int(HOURS * 3600 / INTERVAL_S)
    # The guard was away for ten minutes, five hours ago.
    watched = (n for n in range(1, count + 1) if not 3600 < n * INTERVAL_S < 4200)
    points = [_point(began + n * INTERVAL_S, n) for n in watched]
    lanes = {name: [(began - 60.0, "loading"), (began + 20, "in")] for name in CARDS}
    lanes["w2"] += [(now - 1500, "draining"), (now - 1420, "dead"), (now - 1418, "loading")]
    lanes["w2"] += [(now - 1350, "in")]
    lanes["w3"] += [(now - 900, "silent"), (now - 898, "in"), (now - 16, "silent")]
    lanes["w3"] += [(now - 15, "dead"), (now - 9, "loading")]
    lanes["w4"] += [(began + 3600, "unknown"), (began + 4200, "in")]
    return {
        "interval_s": INTERVAL_S,
        "columns": COLUMNS,
        "points": points,
        "lanes": {name: sorted(lane) for name, lane in lanes.items()},
    }


def _point(at: float, n: int) -> list[float | None]:
    wave = 0.6 + 0.4 * math.sin(n / 120) + 0.08 * math.sin(n * 1.7)
    answered = max(0, round(9 * wave + n % 3))
    values: dict[str, float | None] = {
        "at": at,
        "images": answered + n % 4,
        "answered": answered,
        "refused": 2 if n % 240 > 200 else 0,
        "failed": 1 if n == 1400 else 0,
        "replayed": 0,
        "p50_s": 2.1 + wave if answered else None,
        "p95_s": 4.5 + 3 * wave if answered else None,
        "queued": round(14 * wave * wave),
        "running": 8,
        "wait_s": 4 * wave,
        "pool": 4,
        "gpu_ratio": min(1.0, 0.7 + 0.25 * wave),
    }
    return [values[column] for column in COLUMNS]
