import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from tests.worker.conftest import ready, serving, settings_in
from worker.calibration import tables as calibration
from worker.calibration.timings import Measured
from worker.engine import Costs, Engine
from worker.models.base import Sample
from worker.models.memory import NoMemory
from worker.models.synthetic import SyntheticPipeline
from worker.types import DrawSpec

SIZES = [(64, 64), (128, 128)]
CPU = NoMemory()


def measured(pipeline: SyntheticPipeline, max_batch: int = 3) -> list[Measured]:
    return list(calibration.measure(pipeline, CPU, SIZES, max_batch, repeats=1))


def test_every_number_of_rows_is_measured_at_every_size() -> None:
    found = measured(SyntheticPipeline("synthetic:step_ms=1"))
    assert [(each.size, each.rows) for each in found] == [(s, n) for s in SIZES for n in (1, 2, 3)]


def test_what_takes_long_is_measured_as_long() -> None:
    source = "synthetic:step_ms=20,encode_ms=5,decode_ms=10"
    one = measured(SyntheticPipeline(source), max_batch=1)[0]
    assert one.step_s >= 0.02
    assert one.encode_s >= 0.005
    assert one.decode_s >= 0.01


def test_no_prompt_is_encoded_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A known one costs nothing: the table would promise what no new prompt gets."""
    seen: list[str] = []
    pipeline = SyntheticPipeline("synthetic:step_ms=0")
    start = pipeline.start

    def noted(specs: Sequence[DrawSpec]) -> list[Sample]:
        seen.extend(spec.prompt for spec in specs)
        return start(specs)

    monkeypatch.setattr(pipeline, "start", noted)
    measured(pipeline)
    measured(pipeline)  # as a start without a table does, of its two sizes
    assert len(seen) == len(set(seen)) > 0


def test_a_size_ends_where_the_memory_does() -> None:
    found = measured(SyntheticPipeline("synthetic:step_ms=0,max_rows=2"))
    assert [each.rows for each in found] == [1, 2, 1, 2]


def test_a_stored_table_is_found_again(home: Path) -> None:
    settings, pipeline = settings_in(home), SyntheticPipeline("synthetic:step_ms=1")
    found = measured(pipeline)
    costs = calibration.costs_of(found, CPU, settings.max_batch)
    on = calibration.measured_on(settings, pipeline, CPU)
    calibration.save(calibration.path_of(settings, on), on, found, costs)
    again = calibration.load(settings, pipeline, CPU)
    assert again
    assert again.dump() == costs.dump()


def test_a_table_of_another_device_is_not_used(home: Path) -> None:
    settings, pipeline = settings_in(home), SyntheticPipeline("synthetic:step_ms=1")
    on = calibration.measured_on(settings, pipeline, CPU)
    calibration.save(calibration.path_of(settings, on), on, [], calibration.costs_of([], CPU, 4))
    assert calibration.load(settings, pipeline, replace(CPU, device_name="H100")) is None


def test_a_table_of_other_levers_is_not_used(home: Path) -> None:
    settings, pipeline = settings_in(home), SyntheticPipeline("synthetic:step_ms=1")
    on = calibration.measured_on(settings, pipeline, CPU)
    calibration.save(calibration.path_of(settings, on), on, [], calibration.costs_of([], CPU, 4))
    pipeline.info = replace(pipeline.info, optimisations=(("fp8", "transformer"),))
    assert calibration.load(settings, pipeline, CPU) is None


@pytest.mark.parametrize(("device", "same"), [("cpu", False), ("cuda:0", True)])
def test_threads_matter_to_the_costs_of_a_cpu_only(home: Path, device: str, same: bool) -> None:
    pipeline = SyntheticPipeline("synthetic:step_ms=1")
    pipeline.info = replace(pipeline.info, device=device)
    paths = set()
    for threads in (1, 2):
        settings = settings_in(home, threads=threads)
        paths.add(calibration.path_of(settings, calibration.measured_on(settings, pipeline, CPU)))
    assert (len(paths) == 1) is same


def test_a_table_of_one_device_is_not_used_for_two(home: Path) -> None:
    pipeline = SyntheticPipeline("synthetic:step_ms=1")
    calibration.short(settings_in(home), pipeline, CPU)
    assert calibration.load(settings_in(home, device="cpu"), pipeline, CPU)
    assert calibration.load(settings_in(home, device="cpu,cpu"), pipeline, CPU) is None


def test_a_short_table_is_kept_for_the_next_start(home: Path) -> None:
    settings, pipeline = settings_in(home), SyntheticPipeline("synthetic:step_ms=1")
    costs = calibration.short(settings, pipeline, CPU)
    again = calibration.load(settings, pipeline, CPU)
    assert again
    assert again.dump() == costs.dump()


def test_a_start_measures_the_largest_size_once(home: Path) -> None:
    """Its peak is not in proportion to that of smaller ones, where it is decoded in parts."""
    pipeline = SyntheticPipeline("synthetic:step_ms=1")
    for pixels, largest in ((512 * 600, (544, 544)), (64 * 64, pipeline.info.default_size)):
        settings = settings_in(home, max_pixels=pixels)
        calibration.short(settings, pipeline, CPU)
        path = calibration.path_of(settings, calibration.measured_on(settings, pipeline, CPU))
        found = [(tuple(row["size"]), row["rows"]) for row in json.loads(path.read_text())["rows"]]
        most = [rows for size, rows in found if size == largest]
        assert most == ([1] if largest == (544, 544) else [1, 2, 3, 4])


def on_a_card() -> SyntheticPipeline:
    pipeline = SyntheticPipeline("synthetic:step_ms=1")
    pipeline.info = replace(pipeline.info, device="cuda:0")
    return pipeline


class Card(NoMemory):
    """Takes 100 bytes by itself and 5000 more at the worst moment of a call."""

    def peak_bytes(self) -> int | None:
        return self.resident_bytes + 5000


def test_a_table_stays_good_when_larger_pictures_are_allowed_and_learns_them_once(
    home: Path,
) -> None:
    pipeline, memory = on_a_card(), Card(resident_bytes=100)
    before = settings_in(home, max_pixels=256 * 256)
    known = calibration.short(before, pipeline, memory).dump()
    wider = settings_in(home, max_pixels=1792 * 1024)
    costs = calibration.load(wider, pipeline, memory)
    assert costs
    assert costs.dump() == known
    later = Card(resident_bytes=300)  # another process, which takes more by itself
    calibration.complete(wider, pipeline, later, costs)
    assert costs.timed((1344, 1344))
    assert costs.predict_peak((1344, 1344), 1) == costs.predict_peak((256, 256), 1) == 5300
    again = calibration.load(wider, pipeline, later)
    assert again
    assert again.dump() == costs.dump()
    path = calibration.path_of(wider, calibration.measured_on(wider, pipeline, later))
    rows = [(tuple(row["size"]), row["rows"]) for row in json.loads(path.read_text())["rows"]]
    assert rows.count(((1344, 1344), 1)) == 1
    assert ((256, 256), 1) in rows
    for settings in (wider, before):  # what is known is not measured again
        calibration.complete(settings, pipeline, later, again)
    assert again.dump() == costs.dump()


@pytest.mark.anyio
async def test_a_worker_on_a_card_knows_its_largest_size_before_it_takes_work(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where another test has imported torch, the real card would be asked.
    monkeypatch.setattr("worker.components.memory_of", lambda *_: CPU)
    small, wide = (settings_in(home, max_pixels=side * 256) for side in (256, 1024))
    calibration.short(small, on_a_card(), CPU)
    async with serving(wide, lambda _: on_a_card()) as (service, _):
        await ready(service)
        assert "512x512/1" in service.model.engine.state().step_ms


@pytest.mark.parametrize(
    ("source", "rows"),
    [
        ("synthetic:step_ms=1", [1, 2, 3, 4]),
        ("synthetic:row_ms=10", [1, 2]),  # two are drawn in 0.32 s
        ("synthetic:row_ms=10,max_rows=1", [1]),
    ],
)
def test_a_start_measures_as_many_rows_as_are_drawn_quickly(
    home: Path, monkeypatch: pytest.MonkeyPatch, source: str, rows: list[int]
) -> None:
    monkeypatch.setattr(calibration, "_QUICK_S", 0.25)
    pipeline = SyntheticPipeline(source)
    settings = settings_in(home, max_batch=4)
    calibration.short(settings, pipeline, CPU)
    path = calibration.path_of(settings, calibration.measured_on(settings, pipeline, CPU))
    found = [(tuple(row["size"]), row["rows"]) for row in json.loads(path.read_text())["rows"]]
    whole, half = pipeline.info.default_size, (128, 128)
    assert [n for size, n in found if size == whole] == rows
    most = 1 if "max_rows" in source else 4
    assert [n for size, n in found if size == half] == list(range(1, most + 1))


@pytest.mark.parametrize("text", ["", "{}", '{"costs": 1}', '{"costs": {"caps": {"x": 1}}}'])
def test_a_broken_table_is_as_good_as_none(home: Path, text: str) -> None:
    settings, pipeline = settings_in(home), SyntheticPipeline("synthetic:step_ms=1")
    path = calibration.path_of(settings, calibration.measured_on(settings, pipeline, CPU))
    path.parent.mkdir()
    path.write_text(text)
    assert calibration.load(settings, pipeline, CPU) is None


@pytest.mark.anyio
async def test_a_worker_starts_with_the_table(home: Path) -> None:
    settings = settings_in(home)
    pipeline = SyntheticPipeline(settings.model)
    on = calibration.measured_on(settings, pipeline, CPU)
    found = [Measured((512, 512), 3, 0.1, 0.7, 0.1, None)]
    costs = calibration.costs_of(found, CPU, 4)
    calibration.save(calibration.path_of(settings, on), on, found, costs)
    async with serving(settings) as (service, _):
        await ready(service)
        assert service.model.engine.state().step_ms["512x512/3"] == 700.0


def test_a_table_says_what_it_was_measured_on(home: Path) -> None:
    settings, pipeline = settings_in(home), SyntheticPipeline("synthetic:step_ms=1")
    on = calibration.measured_on(settings, pipeline, CPU)
    path = calibration.path_of(settings, on)
    calibration.save(path, on, measured(pipeline), calibration.costs_of([], CPU, 4))
    assert json.loads(path.read_text())["measured_on"]["model"] == settings.model


def test_a_table_that_counts_no_more_says_what_changed(home: Path) -> None:
    settings, pipeline = settings_in(home), SyntheticPipeline("synthetic:step_ms=1")
    about = settings, pipeline, CPU
    on = calibration.measured_on(*about)
    assert calibration.outdated(*about) == []
    for changes in ({"pipelines": "0123", "driver": "of yore"}, {"model": "another"}):
        was = {**on, **changes}
        calibration.save(
            calibration.path_of(settings, was), was, [], calibration.costs_of([], CPU, 4)
        )
    (home / "calibration" / "torn.json").write_text("{")
    assert calibration.load(*about) is None
    assert calibration.outdated(*about) == ["driver", "pipelines"]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """With the table of such a pipeline on this machine, by other versions."""
    monkeypatch.setattr(calibration, "TABLES", tmp_path)
    pipeline = SyntheticPipeline("synthetic:step_ms=1")
    on = calibration.measured_on(settings_in(tmp_path), pipeline, CPU) | {"libraries": {}}
    memory = replace(CPU, resident_bytes=100)
    costs = calibration.costs_of(measured(pipeline), memory, 4)
    costs.record_peak((64, 64), 1, 150, 100)
    calibration.save(tmp_path / "a.json", on, [], costs)
    return tmp_path


def test_a_shipped_table_serves_a_card_of_its_kind(tables: Path, home: Path) -> None:
    settings, pipeline = settings_in(home), SyntheticPipeline("synthetic:step_ms=1")
    assert calibration.load(settings, pipeline, CPU) is None
    found = calibration.shipped(settings, pipeline, replace(CPU, resident_bytes=1000))
    assert found
    assert found.measured
    assert found.predict_peak((64, 64), 1) == 1050  # this process takes more by itself
    other = replace(CPU, device_name="another card")
    assert calibration.shipped(settings, pipeline, other) is None


def test_what_is_measured_again_is_kept_and_told(home: Path) -> None:
    settings, pipeline = settings_in(home), SyntheticPipeline("synthetic:step_ms=1")
    told: list[Costs] = []
    work = calibration.renewed(settings, pipeline, CPU, told.append)
    assert next(work).rows == 1
    assert not told
    # The rest of the whole size, half of it, and the largest size once.
    assert len(list(work)) == 2 * settings.max_batch
    again = calibration.load(settings, pipeline, CPU)
    assert again
    assert again.dump() == told[0].dump()


@pytest.mark.anyio
@pytest.mark.usefixtures("tables")
async def test_a_worker_with_a_shipped_table_measures_again_when_it_is_idle(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.engine.engine._SPARE_AFTER_S", 0.0)
    settings = settings_in(home)
    pipeline = SyntheticPipeline(settings.model)
    kept = calibration.path_of(settings, calibration.measured_on(settings, pipeline, CPU))
    told, learn = threading.Event(), Engine.learn

    def learnt(engine: Engine, costs: Costs) -> None:
        learn(engine, costs)
        told.set()

    monkeypatch.setattr(Engine, "learn", learnt)
    async with serving(settings) as (service, _):
        await ready(service)
        assert await anyio.to_thread.run_sync(told.wait, 30)
        assert kept.exists()
        assert service.not_ready() is None
        assert service.model.engine.state().step_ms["256x256/4"] > 0


def test_every_shipped_table_can_be_read() -> None:
    for path in calibration.TABLES.glob("*.json"):
        table = json.loads(path.read_bytes())
        assert Costs.load(table["costs"]).measured
        assert set(calibration._SAME) <= set(table["measured_on"])
