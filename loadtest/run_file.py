"""A finished run on disk: ``run.json`` with its figures, ``requests.jsonl`` with every request."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loadtest import record
from loadtest.chaos import Injected
from loadtest.observer import Sample, Span
from loadtest.record import Record
from loadtest.slo import Objective


@dataclass
class Part:
    """A stretch of a run with figures of its own, such as "2 workers"."""

    name: str
    start: float
    end: float
    measured: dict[str, float] = field(default_factory=dict)


@dataclass
class Mark:
    """Something that was done to the cell; ``error`` where it did not work."""

    at: float
    text: str
    end: float
    error: str = ""


@dataclass
class Run:
    """Times are seconds since the epoch."""

    scenario: str
    started: float
    ended: float
    about: dict[str, str]
    """Cell, model, machine, versions: what the figures hold for."""
    objectives: list[Objective]
    measured: dict[str, float]
    parts: list[Part] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    faults: list[Injected] = field(default_factory=list)
    lanes: dict[str, list[Span]] = field(default_factory=dict)
    queue: list[tuple[float, int]] = field(default_factory=list)
    resources: dict[str, list[Sample]] = field(default_factory=dict)
    temporary_files: list[tuple[float, int]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(objective.met for objective in self.objectives)


def save(folder: Path, run: Run) -> None:
    text = json.dumps(asdict(run), ensure_ascii=False, indent=1)
    (folder / "run.json").write_text(text, encoding="utf-8")


def load(folder: Path) -> tuple[Run, list[Record]]:
    """A run and its requests; OSError or ValueError where there is none."""
    data: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    run = Run(**data)
    run.objectives = [Objective(**o) for o in data["objectives"]]
    run.parts = [Part(**p) for p in data["parts"]]
    run.marks = [Mark(**m) for m in data["marks"]]
    run.faults = [Injected(**f) for f in data["faults"]]
    run.lanes = {name: [Span(**s) for s in spans] for name, spans in data["lanes"].items()}
    run.resources = {n: [Sample(**s) for s in all_] for n, all_ in data["resources"].items()}
    return run, record.read([folder / "requests.jsonl"])
