"""Users choose sizes: what is kept of each is bounded, and so is what thousands of them cost."""

from pathlib import Path

import pytest

from tests.worker.engine.fakes import entry, spec
from worker.coordination.heartbeat import HeartbeatFile, Phase
from worker.engine import costs as costs_module
from worker.engine.costs import KINDS, MAX_SIZES, Costs
from worker.engine.heartbeat_writer import _MAX_SHAPES, HeartbeatWriter
from worker.engine.limits import Limits
from worker.engine.oom_tracker import MAX_SHAPES, OomTracker
from worker.engine.queue import Size
from worker.engine.recently import Recently

SIZES = [(64 + 16 * (k % 60), 64 + 16 * (k // 60)) for k in range(3000)]


def recorded(sizes: list[Size]) -> Costs:
    costs = Costs(max_batch=4, memory_limit=1 << 40)
    for size in sizes:
        seconds = size[0] * size[1] / 1e6
        for kind in KINDS:
            for rows in (1, 2):
                costs.record(kind, size, rows, seconds * rows)
        costs.record_peak(size, 1, 1 << 30, 1 << 20)
        costs.shrink(size, 3)
    return costs


def looks(costs: Costs, monkeypatch: pytest.MonkeyPatch) -> int:
    """Areas that one answer about a size that was never drawn compares."""
    counted = 0
    area = costs_module._area

    def count(size: Size) -> int:
        nonlocal counted
        counted += 1
        return area(size)

    monkeypatch.setattr(costs_module, "_area", count)
    costs.batch_cap((2048, 1040), 4)
    monkeypatch.setattr(costs_module, "_area", area)
    return counted


def test_a_cap_costs_the_same_after_thousands_of_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = recorded(SIZES[:MAX_SIZES]), recorded(SIZES)
    assert 0 < looks(many, monkeypatch) <= 1.5 * looks(few, monkeypatch)


def test_the_sizes_of_a_measured_table_are_bounded_too() -> None:
    costs = recorded(SIZES[:MAX_SIZES])
    costs.take(recorded(SIZES[-MAX_SIZES:]))
    costs.rebase(1 << 30)
    costs.take(recorded(SIZES[:MAX_SIZES]))
    assert {len(costs.dump()[kind]) for kind in ("peaks", *KINDS)} == {MAX_SIZES}


def test_of_thousands_of_sizes_the_last_are_known(tmp_path: Path) -> None:
    costs = recorded(SIZES)
    for size in SIZES:
        costs.batch_cap(size, 4)
    dumped = costs.dump()
    assert {len(dumped[kind]) for kind in ("caps", "peaks", *KINDS)} == {MAX_SIZES}
    assert len(costs.step_ms()) == 2 * MAX_SIZES, "what /livez shows"
    tables = (costs._predicted, costs._told, costs._caps, costs._checked, costs._probes)
    assert max(len(table) for table in tables) <= 2048
    width, height = SIZES[0]
    expected_s = width * height / 1e6
    assert costs.predict_s("step", SIZES[-1], 1) == pytest.approx(
        SIZES[-1][0] * SIZES[-1][1] / 1e6, rel=0.01
    )
    assert costs.predict_s("step", SIZES[0], 1) == pytest.approx(expected_s, rel=0.01)


def test_a_size_in_use_is_not_forgotten_for_those_that_come_and_go() -> None:
    costs = Costs()
    for size in SIZES:
        costs.record("step", (1024, 1024), 1, 0.5)
        costs.record("step", size, 1, 0.1)
    assert costs.dump()["step"]["1024x1024"] == {"1": 0.5}


def test_shapes_that_found_room_or_none_are_bounded() -> None:
    oom = OomTracker()
    for size in SIZES:
        oom.drew((size, 1))
        oom.failed(((size[0], size[1] + 4096), 1))
    assert len(oom._drawn) == len(oom._failed) == MAX_SHAPES


def test_shapes_that_the_heartbeat_has_seen_are_bounded(tmp_path: Path) -> None:
    heartbeat_writer = HeartbeatWriter(HeartbeatFile(tmp_path / "w1.beat"), Limits(), compiles=True)
    for width, height in SIZES:
        picture = entry(specs=(spec("a", width=width, height=height),)).pictures[0]
        heartbeat_writer.learn((Phase.STEP, picture.size, 1))
    assert len(heartbeat_writer._seen) == _MAX_SHAPES


def test_what_was_set_longest_ago_is_forgotten_first() -> None:
    kept: Recently[str, int] = Recently(2)
    kept["a"] = kept["b"] = 1
    kept.touch("a")
    kept["c"] = 1
    assert list(kept) == ["a", "c"]
